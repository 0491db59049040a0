"""A finished student leaves its run folder: a model card, one merged model, answers side by side with its base."""
