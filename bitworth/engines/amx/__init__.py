"""A folder for the module path of a vLLM server on CPUs with AMX; see `sitecustomize`."""
