"""From a folder of images to a trained run: `python -m training prepare` and `python -m training fit`."""
