"""OpenAI's Responses: items in, items out, and the responses kept to go on from."""
