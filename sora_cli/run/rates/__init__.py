"""`training.learning_rate: auto`: the learning rate is found when a run starts.

Read `settle` first (where the number goes), then `rule` (the rule of thumb, which finds it).
"""
