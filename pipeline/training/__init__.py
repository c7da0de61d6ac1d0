"""What a training run is: batches, phases, projection, fine-tuning."""
