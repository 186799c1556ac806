"""What the work is: spec, data, models, training, compression, export and measurement. No ray in here."""
