"""`sora compare`: the reports of several runs side by side."""
