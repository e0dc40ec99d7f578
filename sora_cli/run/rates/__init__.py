"""`training.learning_rate: auto`: the learning rate is found when a run starts.

Read `settle` first (where the number goes), then `choice` (how it is found) and `rule` (the rule of
thumb).
"""
