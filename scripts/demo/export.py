"""Writes a checkpoint as a GGUF file in F32, with its vocabulary and chat template."""

import argparse

import gguf
import numpy as np

import model
import vocabulary

CONTEXT = 512


def write_metadata(writer):
    writer.add_name("wayinfer-demo")
    writer.add_description("Answers small questions: sums and differences, comparisons, counting, "
                           "days and months, spelling, small facts.")
    writer.add_license("MIT")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(model.VOCAB)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(model.EMBED)
    writer.add_block_count(model.LAYERS)
    writer.add_feed_forward_length(model.FFN)
    writer.add_head_count(model.HEADS)
    writer.add_head_count_kv(model.KV_HEADS)
    writer.add_rope_dimension_count(model.HEAD)
    writer.add_rope_freq_base(model.ROPE_BASE)
    writer.add_layer_norm_rms_eps(model.EPS)
    writer.add_expert_count(model.EXPERTS)
    writer.add_expert_used_count(model.USED)


def write_vocabulary(writer):
    tokens = vocabulary.tokens()
    special = set(vocabulary.SPECIAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL
                            for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary.merges()])
    writer.add_bos_token_id(vocabulary.BOS)
    writer.add_eos_token_id(vocabulary.END)
    writer.add_eot_token_id(vocabulary.END)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(vocabulary.CHAT_TEMPLATE)


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("checkpoint")
    options.add_argument("gguf")
    args = options.parse_args()
    writer = gguf.GGUFWriter(args.gguf, "llama")
    write_metadata(writer)
    write_vocabulary(writer)
    with np.load(args.checkpoint) as arrays:
        for name in (name[2:] for name in arrays if name.startswith("w.")):
            writer.add_tensor(f"{name}.weight", arrays["w." + name].astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
