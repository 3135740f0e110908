"""From a checkpoint to a bundle: read, localise, write ONNX. Needs the `export` extra; production never imports it."""
