// The commands of the program: one file apps/<name>.cpp each, with its options here and its command line in
// apps/main.cpp. A command returns the exit code: 0, 1 when a check it was asked to make failed, 130 when it
// was interrupted. Bad input is an Error, which main turns into code 2.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace rivulet {

struct EditOptions {
  std::string in;
  std::vector<std::string> prompts, outs;  // the clip is read once and edited by each prompt into its own out
  std::string compare;                     // a video of the source beside the edits
  std::string sheet;                       // a PNG: a row of frames for the source and for each edit
  std::string model;  // a model folder, or "sana-streaming-2b"; empty means the bundled one
  std::string device = "cpu";
  std::string state;  // resumed from when it exists, written at the end; one prompt only
  std::string size;   // WxH, empty for the clip's own
  // "stream": chunk after chunk, as live. "short": the clip's first frames at once, by a bidirectional model.
  std::string mode = "stream";
  int64_t frames = 81;  // of the short mode, at most
  double guidance = 6;  // of the short mode; 1 for none
  int64_t steps = 0;    // network calls per chunk, or steps of the short mode; 0 for the sampler's default
  uint64_t seed = 0;
  int threads = 0;         // 0 for all cores
  std::string safeguards;  // a JSON file (apps/safeguards/config.h); empty for the defaults
  double flow_shift = 8;   // of the noise levels, where steps is not 4 or 2
  // Of sana-streaming-2b alone:
  std::string models = "models";  // the folder that has the published files
  std::string text_embedding;     // a safetensors file of rows and mask instead of the text encoder's
  int64_t cached_chunks = 2;      // before the current one that attention sees, the sink among them
  bool no_sink = false;           // attention does not keep the first chunk
  bool efficient_cache = false;   // the last denoising pass writes the memory
};
int run_edit(const EditOptions& options);

struct ServeOptions {
  std::string model;  // a model folder, or the name of a bundled one; empty means the bundled brook
  std::string device = "cpu";
  std::string bind = "127.0.0.1";  // an address other machines can reach makes a token, which is printed
  int port = 8017;                 // 0 for one that is free
  std::string size = "256x144";    // frames are edited at it, turned for a portrait camera
  std::string safeguards;          // a JSON file; empty for the defaults
  std::string ledger;              // a file that gets one JSON line per chunk
  int threads = 0;                 // 0 for all cores
};
int run_serve(const ServeOptions& options);

struct TrainOptions {
  std::string config;
  std::string device = "cpu";
  std::string init;    // a model folder to start from
  int64_t steps = 0;   // 0 for the config's
  int workers = 1;     // threads that prepare samples
  bool fresh = false;  // ignore the checkpoints of an earlier run
};
int run_train(const TrainOptions& options);
// What run_train calls for the tasks of video autoencoders, and for "flow", "ode" and "self_forcing".
struct TrainConfig;
int run_train_vae(const TrainOptions& options, TrainConfig config);
int run_train_stage(const TrainOptions& options, TrainConfig config);

struct VaeOptions {
  std::string in, out;
  std::string model;  // a model folder: creek's or LTX-2's
  std::string size;   // WxH, empty for the clip's own
  std::string sheet;  // a PNG with frames of both
  std::string device = "cpu";
  int64_t frames = 0;  // at most so many, 0 for all
  bool tiles = false;  // a two-way decoder works on runs of 4 latents, blended, instead of the whole clip
  bool remap = false;  // make a causal decoder of one that sees both sides, by the remap alone
};
int run_vae(const VaeOptions& options);

struct EvalOptions {
  std::string model;                      // a model folder; empty means the bundled one
  std::vector<std::string> clips, edits;  // edits by name: "night", "red_to_blue", "keep"
  int64_t frames = 48;                    // of each clip, from its start
  std::string size = "256x144";
  int64_t steps = 0;  // network calls per chunk; 0 for the sampler's default
  uint64_t seed = 0;
  std::string device = "cpu";
  std::string json, sheet;  // reports to write: figures, and a PNG of source | edit | target
};
int run_eval(const EvalOptions& options);

struct SearchCommandOptions {
  std::vector<std::string> calibrate,
      held_out;  // videos: errors are measured on the first, checked on the second
  std::vector<std::string> prompts = {"make it look like sunset", "turn it into a pencil sketch",
                                      "make the red things blue"};  // clips take them in turn
  std::string out;                                                  // folder of the journal and the results
  std::string model;          // a model folder; empty means the bundled one
  std::string cost = "bits";  // a cost file, or the name of a bundled one
  std::vector<std::string> choices = {"fp8", "mxfp8", "nvfp4", "nvfp4_46", "nvfp4_46+lr32"};
  std::vector<std::string> layers = {"sa_q", "sa_k",  "sa_v", "sa_gate", "sa_o",    "scores",
                                     "ca_q", "ca_kv", "ca_o", "ffn_in",  "ffn_out", "ffn_t"};
  std::string size = "256x144";
  int64_t chunks = 2;    // of a clip
  int64_t excerpts = 2;  // clips cut from each video
  int64_t every = 48;    // frames from the start of one to the next
  int64_t steps = 0;     // network calls per chunk; 0 for the sampler's default
  bool per_step = false, forced = false;
  double budget = 0;  // of the chosen policy, a share of the cost of all bf16; 0: the paper policy's cost
  int64_t random = 64, equal = 8, front = 41, verified = 8, nodes = 1000;
  uint64_t seed = 1;
  std::string device = "cpu";
  int threads = 0;  // 0 for all cores
};
int run_search(const SearchCommandOptions& options);

struct InspectOptions {
  std::string what;
  bool tensors = false;
  bool gemm = false;  // instead: which matrix products the GPU has
  std::string json;   // of --gemm
};
int run_inspect(const InspectOptions& options);
int run_inspect_gemm(const std::string& json);

struct QuantizeOptions {
  std::string model;   // a model folder, or sana-streaming-2b
  std::string policy;  // JSON
  std::string out;     // .safetensors
  std::string device = "cpu";
  bool random_weights = false;
};
int run_quantize(const QuantizeOptions& options);

struct ConvertOptions {
  std::string in, out;
  std::string as;              // a released model whose names and shapes the file must have
  std::string random;          // a released model to make random weights of, instead of `in`
  std::string dtype;           // of floating tensors; empty for the file's own, bf16 for random ones
  std::string device = "cpu";  // where random weights are made
  uint64_t seed = 0;
};
int run_convert(const ConvertOptions& options);

struct ModelsOptions {
  std::vector<std::string> names;  // empty for all
  std::string models = "models";   // the models folder
  std::string from;                // a file elsewhere to verify
  bool verify = false;
};
int run_models(const ModelsOptions& options);

struct BenchDitOptions {
  std::string model = "sana-streaming-2b";
  bool random_weights = false;
  std::string size = "1280x704";
  int64_t chunks = 40;       // of the stream whose memory and frames per second are measured
  int64_t text_tokens = 60;  // real ones; padded ones are dropped
  std::string policy;        // a precision policy; empty: bf16 throughout
  std::string json;          // the report to write
  std::string gemm_cache;    // a file of chosen algorithms; empty for the user's cache
  bool quick = false;        // 8 chunks
};
int run_bench_dit(const BenchDitOptions& options);

struct BenchTextOptions {
  int64_t repetitions = 20;
  std::string json;        // the report to write
  std::string gemm_cache;  // a file of chosen algorithms; empty for the user's cache
};
int run_bench_text(const BenchTextOptions& options);

struct BenchVaeOptions {
  std::string size = "1280x704";
  int64_t chunks = 20;  // of 24 frames
  int64_t latents = 3;  // worked on at a time
  std::string json;     // the report to write
};
int run_bench_vae(const BenchVaeOptions& options);

struct BenchE2eOptions {
  std::string size = "1280x704";
  int64_t chunks = 20;       // of 24 frames, after those that fill the window
  int64_t text_tokens = 60;  // real ones
  std::string json;          // the report to write
  std::string gemm_cache;    // a file of chosen algorithms; empty for the user's cache
};
int run_bench_e2e(const BenchE2eOptions& options);

struct SelftestOptions {
  std::string golden;  // empty: no golden files
  std::string device = "cpu";
  std::string filter;          // only ops whose name matches this regular expression
  bool no_production = false;  // leave out the shapes of the benchmark
};
int run_selftest(const SelftestOptions& options);

struct ProvenanceOptions {
  std::string file;
  std::string safeguards;  // where the key is; empty for the defaults
  int64_t frames = 0;      // of the file, from its start; 0 for all
};
int run_provenance(const ProvenanceOptions& options);

struct AuditOptions {
  std::string file;
};
int run_audit(const AuditOptions& options);

struct DataPackOptions {
  std::vector<std::string> in;  // videos, photos, and footage archives to take over whole
  std::string out;
  std::string size = "320x180";  // videos are scaled to cover it and cropped, photos keep their edges
  std::string origin;            // where the inputs come from; empty for the path of each
  std::string licence;           // theirs, written into the archive
  int64_t every = 0;             // a clip starts at every so many frames; 0 spreads them over the video
  int64_t burst = 8;             // frames of a clip
  int64_t frames = 64;           // at most so many of each video
};
int run_data_pack(const DataPackOptions& options);

struct DataPreviewOptions {
  std::string footage;  // empty for made-up backgrounds alone
  std::string mix;      // a JSON file with the renderer's options; empty for the defaults
  std::string out;
  std::string size = "128x128";
  int64_t count = 12, frames = 5, seed = 0;
};
int run_data_preview(const DataPreviewOptions& options);

}  // namespace rivulet
