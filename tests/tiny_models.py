"""Language models small enough to be made in a test: random weights, tokenizers of their own."""

from pathlib import Path
from typing import Any

from tests.conftest import make_texts

#: As ChatML, which Qwen and others use.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: As Llama's: it begins with a BOS, trims, and refuses two messages of one role in a row.
INST = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def save_tokenizer(folder: Path, kind: str, **changes: Any) -> Any:
    """A byte-level BPE as GPT-2 and Qwen have it (`gpt2`, `qwen2`), or one of pieces with a BOS as
    Llama has it (`llama`)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    texts = [*make_texts(200), "Human: Who? Assistant: I.\n\n", "漢字とかな 👩‍👩‍👧", CHATML, INST]
    common: dict[str, Any] = {"vocab_size": 500, "show_progress": False}
    if kind == "llama":
        made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        common["vocab_size"] = 700
        made.train_from_iterator(texts, BpeTrainer(special_tokens=pieces, **common))
        made.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
        )
        tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        template = INST
    else:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = BpeTrainer(special_tokens=special, initial_alphabet=alphabet, **common)
        made.train_from_iterator(texts, trainer)
        end = "<|im_end|>" if kind == "qwen2" else "<|endoftext|>"
        tokens = {"eos_token": end}
        if kind == "gpt2":
            tokens["bos_token"] = end
        template = CHATML
    found = PreTrainedTokenizerFast(tokenizer_object=made, **{**tokens, **changes})
    found.chat_template = template
    found.save_pretrained(folder)
    return found


def save_model(folder: Path, kind: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """A folder with model and tokenizer, of weights that tell tokens well apart.

    Args:
        kind: `llama`, `qwen2`, `qwen3` or `gpt2`.
        changes: to the configuration.
    """
    import torch
    import transformers

    tokenizer = save_tokenizer(folder, "llama" if kind == "llama" else kind[:5])
    names = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "gpt2": "GPT2"}
    tail = "LMHeadModel" if kind == "gpt2" else "ForCausalLM"
    sizes: dict[str, Any] = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 256}
    if kind != "gpt2":
        sizes |= {"num_key_value_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = getattr(transformers, f"{names[kind]}Config")(**{**sizes, **ids, **changes})
    torch.manual_seed(seed)
    model = getattr(transformers, f"{names[kind]}{tail}")(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder
