"""What a checkpoint runs on: in process with torch, a server, a URL, or a fake; each engine is one file here."""
