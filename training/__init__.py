"""Builds the adapters that guardrail loads: facts and hand-written messages in, a calibrated adapter with its model card out.

    topic      a topic folder: messages, facts, templates
    recipe     what is trained on what, and how
    generate   composed examples: facts set into templates
    split      train, validation, test: disjoint by name and by template
    train      LoRA with PEFT, Trainer and Accelerate; resumable
    calibrate  temperature, bias and thresholds per served form, canaries
    evaluate   figures per slice
    card       the model card, from those figures

`python -m training all RECIPE` runs the chain. Imports go one way, and never from guardrail to here.
"""
