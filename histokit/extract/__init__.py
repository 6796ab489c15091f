"""From images to features: patches, encoders, and the files that extraction writes."""
