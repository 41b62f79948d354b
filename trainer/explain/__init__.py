"""`cetnet explain`: what each feature is worth to a trained model, and which component decides where."""
