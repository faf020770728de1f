"""A JSONL line → a `Record`: formats, records, pictures, videos, the conversation as text."""
