/* Search from disk: a browser starts no worker from a file, so the worker's script runs in a hidden frame instead. */
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow;
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = frame.contentDocument.createElement("script");
      script.src = new URL(url, location.href).href;
      this.ready = new Promise((resolve) => script.addEventListener("load", resolve));
      this.send = (data) => inside.dispatchEvent(new inside.MessageEvent("message", { data }));
      frame.contentDocument.head.append(script);
    }

    postMessage(data) {
      this.ready.then(() => this.send(data));
    }
  };
  window.Worker = window.IFrameWorker;
}
