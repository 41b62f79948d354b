"""What it costs to use a trained model: new rows, scores, requests."""
