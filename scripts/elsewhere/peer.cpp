// One measurement of llama.cpp in the manner of `wayinfer bench`: peer MODEL THREADS PROMPT DECODE
// Prints {"prefill": tok/s, "decode": tok/s}. A short prompt goes before, unmeasured.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "llama.h"

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static void decode(llama_context * context, llama_token * tokens, int count) {
    if (llama_decode(context, llama_batch_get_one(tokens, count)) != 0) {
        std::fprintf(stderr, "peer: llama_decode failed\n");
        std::exit(1);
    }
}

int main(int argc, char ** argv) {
    if (argc != 5) {
        std::fprintf(stderr, "usage: peer MODEL THREADS PROMPT DECODE\n");
        return 2;
    }
    const int threads = std::atoi(argv[2]), prompt = std::atoi(argv[3]), count = std::atoi(argv[4]);
    const int batch = 512;
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == nullptr) {
        std::fprintf(stderr, "peer: %s does not load\n", argv[1]);
        return 1;
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = prompt + count + 1;
    params.n_batch = params.n_ubatch = batch;
    params.n_threads = params.n_threads_batch = threads;
    llama_context * context = llama_init_from_model(model, params);
    if (context == nullptr) {
        std::fprintf(stderr, "peer: no context\n");
        return 1;
    }
    const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    std::vector<llama_token> tokens(prompt + count);
    for (size_t i = 0; i < tokens.size(); i++) {
        tokens[i] = (llama_token) ((3 + 7919 * i) % vocab);
    }
    decode(context, tokens.data(), prompt < 16 ? prompt : 16);
    llama_memory_clear(llama_get_memory(context), true);

    const double start = now();
    for (int at = 0; at < prompt; at += batch) {
        decode(context, tokens.data() + at, prompt - at < batch ? prompt - at : batch);
    }
    llama_synchronize(context);
    const double between = now();
    for (int i = 0; i < count; i++) {
        decode(context, tokens.data() + prompt + i, 1);
        llama_synchronize(context);
    }
    const double end = now();
    std::printf("{\"prefill\": %.3f, \"decode\": %.3f}\n", prompt / (between - start), count / (end - between));
    llama_free(context);
    llama_model_free(model);
    return 0;
}
