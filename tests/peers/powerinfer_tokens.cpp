// The likeliest continuation of each prompt, as token ids, from PowerInfer's library at one thread.
//
//     powerinfer_tokens MODEL.gguf COUNT PROMPT...
//
// A prompt is text, or ids after "ids:". Prints a line for each: prompt ids, "|", generated ids. Compile it
// outside the project against PowerInfer's llama.h and library: docs/benchmarks/powerinfer_2cores_2026-11-23.md.

#include "llama.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

static std::vector<llama_token> encode(const llama_model * model, const char * prompt) {
    std::vector<llama_token> ids;
    if (strncmp(prompt, "ids:", 4) == 0) {
        std::istringstream stream(prompt + 4);
        for (llama_token id; stream >> id;) {
            ids.push_back(id);
        }
        return ids;
    }
    ids.resize(strlen(prompt) + 8);
    const bool add_bos = llama_vocab_type(model) == LLAMA_VOCAB_TYPE_SPM;  // as its main program does
    const bool special = false;  // only so does it put the space before a text that SentencePiece has there
    const int size = (int) ids.size();
    const int count = llama_tokenize(model, prompt, (int) strlen(prompt), ids.data(), size, add_bos, special);
    ids.resize(count < 0 ? 0 : count);
    return ids;
}

static llama_token likeliest(llama_context * context, const llama_model * model, int row) {
    const float * logits = llama_get_logits_ith(context, row);
    llama_token best = 0;
    for (llama_token id = 1; id < llama_n_vocab(model); ++id) {
        if (logits[id] > logits[best]) {
            best = id;
        }
    }
    return best;
}

static bool decode(llama_context * context, const std::vector<llama_token> & ids, int position) {
    llama_batch batch = llama_batch_init((int) ids.size(), 0, 1);
    batch.n_tokens = (int) ids.size();
    for (int i = 0; i < batch.n_tokens; ++i) {
        batch.token[i] = ids[i];
        batch.pos[i] = position + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = i == batch.n_tokens - 1;
    }
    const bool done = llama_decode(context, batch) == 0;
    llama_batch_free(batch);
    return done;
}

static void print(const std::vector<llama_token> & ids) {
    for (llama_token id : ids) {
        printf("%d ", id);
    }
}

int main(int argc, char ** argv) {
    if (argc < 4) {
        return 2;
    }
    llama_backend_init(false);
    llama_model * model = llama_load_model_from_file(argv[1], llama_model_default_params());
    if (model == nullptr) {
        return 1;
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 256;
    params.n_threads = params.n_threads_batch = 1;
    params.f16_kv = false;
    const int count = atoi(argv[2]);
    for (int i = 3; i < argc; ++i) {
        llama_context * context = llama_new_context_with_model(model, params);
        const std::vector<llama_token> prompt = encode(model, argv[i]);
        std::vector<llama_token> found;
        bool good = !prompt.empty() && decode(context, prompt, 0);
        int row = (int) prompt.size() - 1;
        for (int position = (int) prompt.size(); good && (int) found.size() < count; ++position, row = 0) {
            found.push_back(likeliest(context, model, row));
            good = decode(context, {found.back()}, position);
        }
        print(prompt);
        printf("| ");
        print(found);
        printf("\n");
        llama_free(context);
    }
    llama_free_model(model);
    llama_backend_free();
    return 0;
}
