"""What comes from others, taken with care: documents, headers, folders, chat templates, text to be shown, and keys."""
