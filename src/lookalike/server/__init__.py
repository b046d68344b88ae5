"""The HTTP service and its client; FastAPI and uvicorn are imported here only."""
