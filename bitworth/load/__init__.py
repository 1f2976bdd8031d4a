"""Load on a server or an engine: what is sent and when, and what the timings of its requests say."""
