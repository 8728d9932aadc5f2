"""Files in and out, with bounds against hostile input: images, weights, JSON, downloads. Import the module you need."""
