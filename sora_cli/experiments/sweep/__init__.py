"""`sora sweep`: runs that one file defines, on one machine or a Ray cluster."""
