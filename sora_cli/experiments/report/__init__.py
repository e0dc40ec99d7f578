"""`sora report`: the HTML page of one run or path."""
