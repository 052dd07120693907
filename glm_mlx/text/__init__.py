"""Text to ids and back, messages to prompts; knows no model."""
