"""The service: a queue of jobs behind HTTP. It answers from the store alone; what runs is the controller's affair."""
