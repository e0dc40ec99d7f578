"""`sora compare`: many runs' reports side by side."""
