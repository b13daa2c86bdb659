// rivulet: the command line. Exit codes: 0 done, 1 a check failed, 2 bad input or a failure, 130 interrupted.
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <exception>
#include <functional>
#include <iostream>

#include "apps/commands.h"

namespace rivulet {
namespace {

using Run = std::function<int()>;

Run add_edit(CLI::App& app) {
  auto o = std::make_shared<EditOptions>();
  app.add_option("in", o->in,
                 "A video file, a .y4m, a folder of images, a webcam (/dev/video0), or - for y4m on stdin")
      ->required();
  app.add_option("-p,--prompt", o->prompts,
                 "What to change; several -p with as many -o edit one clip several ways")
      ->required()
      ->expected(1)
      ->take_all();
  app.add_option("-o,--out", o->outs, "An .mp4, a .y4m, a folder for PNGs, or - for y4m on stdout")
      ->required()
      ->expected(1)
      ->take_all();
  app.add_option("--compare", o->compare, "Also write a video of the source beside the edits");
  app.add_option("--sheet", o->sheet, "Also write a PNG with a row of frames for the source and each edit");
  app.add_option("--size", o->size,
                 "WxH to edit at: scaled to cover it and cropped at the centre, turned for a portrait clip");
  app.add_option("--mode", o->mode,
                 "stream: chunk after chunk; short: the first frames at once, by a bidirectional model")
      ->capture_default_str()
      ->check(CLI::IsMember({"stream", "short"}));
  app.add_option("--frames", o->frames, "Frames of the short mode, at most")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  app.add_option("--guidance", o->guidance,
                 "Of the short mode: how far to go beyond the unguided edit, 1 for none")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 100.0));
  app.add_option("--steps", o->steps, "Network calls per chunk, or steps of the short mode (50)")
      ->check(CLI::Range(1, 1000));
  app.add_option("--seed", o->seed, "Seed of the noise");
  app.add_option("--state", o->state, "Resume the stream from this file if it exists, and save it there");
  app.add_option("--model", o->model, "A model folder, or sana-streaming-2b (default: the bundled brook)");
  app.add_option("--device", o->device, "cpu or cuda");
  app.add_option("--threads", o->threads, "CPU threads (default: all)")->check(CLI::Range(1, 1024));
  app.add_option("--safeguards", o->safeguards, "A JSON file of safeguards (default: the bundled ones)");
  app.add_option("--flow-shift", o->flow_shift,
                 "Shift of the noise levels, for other step counts than 4 and 2")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  const char* published = "sana-streaming-2b";
  app.add_option("--models", o->models, "The folder of its files; see rivulet models")
      ->capture_default_str()
      ->group(published);
  app.add_option("--text-embedding", o->text_embedding,
                 "A safetensors file with rows [1, L, 2304] and mask [1, L] in place of the text encoder's")
      ->group(published);
  app.add_option("--cached-chunks", o->cached_chunks, "Chunks that attention sees before the current one")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024))
      ->group(published);
  app.add_flag("--no-sink", o->no_sink, "Attention forgets the first chunk")->group(published);
  app.add_flag("--efficient-cache", o->efficient_cache,
               "The last denoising pass writes the memory: one pass less a chunk")
      ->group(published);
  return [o] { return run_edit(*o); };
}

Run add_serve(CLI::App& app) {
  auto o = std::make_shared<ServeOptions>();
  app.add_option("--model", o->model, "A model folder or the name of a bundled model (default: brook)");
  app.add_option("--device", o->device, "cpu or cuda");
  app.add_option("--port", o->port, "The port of the page, 0 for one that is free")
      ->capture_default_str()
      ->check(CLI::Range(0, 65535));
  app.add_option("--bind", o->bind,
                 "The address to listen on; any but this machine's own asks for a token, which is printed")
      ->capture_default_str();
  app.add_option("--size", o->size, "WxH to edit at, turned for a portrait camera")->capture_default_str();
  app.add_option("--safeguards", o->safeguards, "A JSON file of what the safeguards do");
  app.add_option("--ledger", o->ledger, "Append one JSON line per chunk to this file");
  app.add_option("--threads", o->threads, "CPU threads (default: all)")->check(CLI::Range(1, 1024));
  return [o] { return run_serve(*o); };
}

Run add_train(CLI::App& app) {
  auto o = std::make_shared<TrainOptions>();
  app.add_option("config", o->config, "The training run as JSON")->required();
  app.add_option("--steps", o->steps, "Stop after this many steps instead of the config's")
      ->check(CLI::PositiveNumber);
  app.add_option("--device", o->device, "cpu or cuda");
  app.add_option("--init", o->init, "A model folder to start from");
  app.add_option("--workers", o->workers, "Threads that prepare samples")->check(CLI::Range(1, 1024));
  app.add_flag("--fresh", o->fresh, "Start over instead of resuming the last checkpoint");
  return [o] { return run_train(*o); };
}

Run add_eval(CLI::App& app) {
  auto o = std::make_shared<EvalOptions>();
  o->edits = {"night",       "sepia",           "sketch",        "black_and_white", "sunset", "negative",
              "red_to_blue", "green_to_purple", "yellow_to_red", "blue_to_orange",  "keep"};
  app.add_option("clips", o->clips, "Video files, .y4m files or folders of images")->required();
  app.add_option("--model", o->model, "A model folder (default: the bundled brook)");
  app.add_option("--edits", o->edits, "Edits to measure, such as night red_to_blue keep");
  app.add_option("--frames", o->frames, "Frames of each clip")->check(CLI::PositiveNumber);
  app.add_option("--size", o->size, "WxH to edit at");
  app.add_option("--steps", o->steps, "Network calls per chunk")->check(CLI::Range(1, 1000));
  app.add_option("--seed", o->seed, "Seed of the noise");
  app.add_option("--device", o->device, "cpu or cuda");
  app.add_option("--json", o->json, "Write the figures here");
  app.add_option("--sheet", o->sheet, "Write a PNG of source, edit and exact target here");
  return [o] { return run_eval(*o); };
}

Run add_vae(CLI::App& app) {
  auto o = std::make_shared<VaeOptions>();
  app.add_option("in", o->in, "A video file, a .y4m, a folder of images, or - for y4m on stdin")->required();
  app.add_option("out", o->out, "An .mp4, a .y4m, a folder for PNGs, or - for y4m on stdout")->required();
  app.add_option("--model", o->model, "A folder of a video autoencoder: creek's or LTX-2's")->required();
  app.add_option("--size", o->size, "WxH to work at: scaled to cover it and cropped at the centre");
  app.add_option("--frames", o->frames, "At most so many frames")->check(CLI::PositiveNumber);
  app.add_option("--sheet", o->sheet, "Also write a PNG with frames of the source and the decoded clip");
  app.add_option("--device", o->device, "cpu or cuda");
  app.add_flag("--tiles", o->tiles,
               "Decode runs of 4 latents and blend them, where the decoder sees both sides");
  app.add_flag("--remap", o->remap, "Decode causally with the taps on future frames folded into the present");
  return [o] { return run_vae(*o); };
}

Run add_search(CLI::App& app) {
  auto o = std::make_shared<SearchCommandOptions>();
  app.add_option("clips", o->calibrate, "Videos on which errors are measured")->required();
  app.add_option("--held-out", o->held_out, "Videos on which the result is checked")->required();
  app.add_option("-o,--out", o->out, "Folder of the results; a search that was stopped there goes on")
      ->required();
  app.add_option("-p,--prompt", o->prompts, "Instructions, taken in turn by the clips")
      ->expected(1)
      ->take_all();
  app.add_option("--model", o->model, "A model folder (default: the bundled brook)");
  app.add_option("--cost", o->cost,
                 "A cost file, bits, rtx5090 (a model, not measured), or measured: on --device, now")
      ->capture_default_str();
  app.add_option("--choices", o->choices, "Formats beside bf16")->capture_default_str();
  app.add_option("--layers", o->layers, "Layers that may be given one")->capture_default_str();
  app.add_option("--budget", o->budget,
                 "Cost of the policy as a share of all bf16 (default: the paper's policy)")
      ->check(CLI::Range(0.0, 1.0));
  app.add_flag("--per-step", o->per_step, "Decide for every denoising step by itself");
  app.add_flag("--forced", o->forced, "Solve for teacher-forced errors instead of free-running ones");
  app.add_option("--size", o->size, "WxH to edit at")->capture_default_str();
  app.add_option("--chunks", o->chunks, "Chunks of a clip")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  app.add_option("--excerpts", o->excerpts, "Clips cut from each video")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  app.add_option("--every", o->every, "Frames from the start of one clip to the next")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  app.add_option("--steps", o->steps, "Network calls per chunk")->check(CLI::Range(1, 1000));
  app.add_option("--random", o->random, "Random policies that test the prediction")
      ->capture_default_str()
      ->check(CLI::Range(2, 100000));
  app.add_option("--equal", o->equal, "Random policies of the chosen one's cost")
      ->capture_default_str()
      ->check(CLI::Range(0, 100000));
  app.add_option("--front", o->front, "Budgets of the front")
      ->capture_default_str()
      ->check(CLI::Range(2, 10000));
  app.add_option("--verified", o->verified, "Policies of the front measured on the held-out clips")
      ->capture_default_str()
      ->check(CLI::Range(0, 10000));
  app.add_option("--nodes", o->nodes, "Nodes of the solver's tree for each budget")
      ->capture_default_str()
      ->check(CLI::Range(1, 100000000));
  app.add_option("--seed", o->seed, "Seed of the noise and of random policies")->capture_default_str();
  app.add_option("--device", o->device, "cpu or cuda");
  app.add_option("--threads", o->threads, "CPU threads (default: all)")->check(CLI::Range(1, 1024));
  return [o] { return run_search(*o); };
}

Run add_inspect(CLI::App& app) {
  auto o = std::make_shared<InspectOptions>();
  app.add_option("what", o->what,
                 "A model folder, a .safetensors file, sana-streaming-2b or sana-bidirectional-2b");
  app.add_flag("--tensors", o->tensors, "List every tensor");
  app.add_flag("--gemm", o->gemm, "Instead: which scaled matrix products this GPU has, timed");
  app.add_option("--json", o->json, "Write the figures of --gemm here");
  return [o] { return run_inspect(*o); };
}

Run add_quantize(CLI::App& app) {
  auto o = std::make_shared<QuantizeOptions>();
  app.add_option("model", o->model, "A model folder, or sana-streaming-2b with --random-weights")->required();
  app.add_option("--policy", o->policy, "The precision policy, a JSON file")->required();
  app.add_option("--out", o->out, "The file to write, .safetensors")->required();
  app.add_option("--device", o->device, "cpu or cuda")->capture_default_str();
  app.add_flag("--random-weights", o->random_weights, "Make the weights up");
  return [o] { return run_quantize(*o); };
}

Run add_convert(CLI::App& app) {
  auto o = std::make_shared<ConvertOptions>();
  auto files = std::make_shared<std::vector<std::string>>();
  app.add_option(
         "files", *files,
         "PyTorch weights (.pth, .pt, .bin), safetensors or the index of shards, and the .safetensors to "
         "write; the latter alone with --random")
      ->required()
      ->expected(1, 2);
  app.add_option("--as", o->as, "A published model whose weights these must be; see rivulet models");
  app.add_option("--random", o->random, "Random weights of a published model's names and shapes");
  app.add_option("--dtype", o->dtype, "f32, bf16 or f16 (default: as in the file; bf16 for random weights)");
  app.add_option("--seed", o->seed, "Seed of the random weights");
  app.add_option("--device", o->device, "cpu or cuda: where random weights are made");
  return [o, files] {
    o->out = files->back();
    if (files->size() == 2) o->in = files->front();
    return run_convert(*o);
  };
}

Run add_models(CLI::App& app) {
  auto o = std::make_shared<ModelsOptions>();
  app.add_option("names", o->names, "Published models (default: all)");
  app.add_option("--models", o->models, "The folder that keeps them")->capture_default_str();
  app.add_flag("--verify", o->verify, "Check names, shapes and values of what is there");
  app.add_option("--from", o->from, "Check this file as the named model");
  return [o] { return run_models(*o); };
}

Run add_selftest(CLI::App& app) {
  auto o = std::make_shared<SelftestOptions>();
  app.add_option("--golden", o->golden, "A folder of golden files of the reference");
  app.add_option("--device", o->device, "cpu or cuda");
  app.add_option("--filter", o->filter, "Only ops whose name matches this regular expression");
  app.add_flag("--no-production", o->no_production, "Leave out the large shapes, as on the CPU");
  return [o] { return run_selftest(*o); };
}

Run add_provenance(CLI::App& app) {
  auto o = std::make_shared<ProvenanceOptions>();
  app.add_option("file", o->file, "A video file, a .y4m or a folder of images")->required();
  app.add_option("--safeguards", o->safeguards, "The JSON file with the key (default: the bundled one)");
  app.add_option("--frames", o->frames, "Read so many frames (default: all)")->check(CLI::PositiveNumber);
  return [o] { return run_provenance(*o); };
}

Run add_audit(CLI::App& app) {
  auto o = std::make_shared<AuditOptions>();
  app.add_option("file", o->file, "An audit log")->required();
  return [o] { return run_audit(*o); };
}

Run add_bench_vae(CLI::App& app) {
  auto o = std::make_shared<BenchVaeOptions>();
  app.add_option("--size", o->size, "frame size, multiples of 32")->capture_default_str();
  app.add_option("--chunks", o->chunks, "chunks of 24 frames to time")
      ->capture_default_str()
      ->check(CLI::Range(int64_t(1), int64_t(100000)));
  app.add_option("--latents", o->latents, "latent frames worked on at a time")
      ->capture_default_str()
      ->check(CLI::Range(int64_t(1), int64_t(4)));
  app.add_option("--json", o->json, "write the report here");
  return [o] { return run_bench_vae(*o); };
}

Run add_bench_e2e(CLI::App& app) {
  auto o = std::make_shared<BenchE2eOptions>();
  app.add_option("--size", o->size, "frame size, multiples of 32")->capture_default_str();
  app.add_option("--chunks", o->chunks, "chunks of 24 frames to time")
      ->capture_default_str()
      ->check(CLI::Range(int64_t(1), int64_t(100000)));
  app.add_option("--text-tokens", o->text_tokens, "length of the instruction")
      ->capture_default_str()
      ->check(CLI::Range(int64_t(1), int64_t(300)));
  app.add_option("--json", o->json, "write the report here");
  app.add_option("--gemm-cache", o->gemm_cache, "file with the algorithms chosen for matrix products");
  return [o] { return run_bench_e2e(*o); };
}

Run add_bench_dit(CLI::App& app) {
  auto o = std::make_shared<BenchDitOptions>();
  app.add_option("--model", o->model, "sana-streaming-2b")->capture_default_str();
  app.add_flag("--random-weights", o->random_weights, "Make the weights up on the GPU")->required();
  app.add_option("--size", o->size, "WxH of the video, multiples of 32")->capture_default_str();
  app.add_option("--chunks", o->chunks, "Chunks of the stream")
      ->capture_default_str()
      ->check(CLI::Range(4, 100000));
  app.add_flag("--quick", o->quick, "8 chunks");
  app.add_option("--policy", o->policy, "A precision policy (JSON; some in models/sana_streaming/policies)");
  app.add_option("--text-tokens", o->text_tokens, "Tokens of the instruction")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096));
  app.add_option("--gemm-cache", o->gemm_cache,
                 "File of the matrix products' chosen algorithms (default: in the user's cache)");
  app.add_option("--json", o->json, "Write the report here");
  return [o] { return run_bench_dit(*o); };
}

Run add_bench_text(CLI::App& app) {
  auto o = std::make_shared<BenchTextOptions>();
  app.add_option("--repetitions", o->repetitions, "Timed calls of each length")
      ->capture_default_str()
      ->check(CLI::Range(1, 100000));
  app.add_option("--gemm-cache", o->gemm_cache,
                 "File of the matrix products' chosen algorithms (default: in the user's cache)");
  app.add_option("--json", o->json, "Write the report here");
  return [o] { return run_bench_text(*o); };
}

Run add_data_pack(CLI::App& app) {
  auto o = std::make_shared<DataPackOptions>();
  app.add_option("in", o->in, "Videos, photos, and footage archives to take over whole")->required();
  app.add_option("--out", o->out, "The archive, a .safetensors file")->required();
  app.add_option("--licence", o->licence, "Licence of the videos and photos, kept with each")->required();
  app.add_option("--origin", o->origin, "Where they come from (default: the path of each)");
  app.add_option("--size", o->size, "WxH that videos are cropped to and photos cover")->capture_default_str();
  app.add_option("--burst", o->burst, "Consecutive frames of one clip")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096));
  app.add_option("--every", o->every, "Start a clip at every so many frames (default: spread over the video)")
      ->check(CLI::PositiveNumber);
  app.add_option("--frames", o->frames, "At most so many frames of each video")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  return [o] { return run_data_pack(*o); };
}

Run add_data_preview(CLI::App& app) {
  auto o = std::make_shared<DataPreviewOptions>();
  app.add_option("--out", o->out, "The contact sheet, a .png file")->required();
  app.add_option("--footage", o->footage, "A footage archive (default: made-up backgrounds alone)");
  app.add_option("--mix", o->mix, "A JSON file with the renderer's options");
  app.add_option("--count", o->count, "Samples to show")->capture_default_str()->check(CLI::Range(1, 256));
  app.add_option("--size", o->size, "WxH of a sample")->capture_default_str();
  app.add_option("--frames", o->frames, "Frames of a sample")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096));
  app.add_option("--seed", o->seed, "Seed of the samples");
  return [o] { return run_data_preview(*o); };
}

Run add_data(CLI::App& app) {
  app.require_subcommand(1);
  auto chosen = std::make_shared<Run>();
  const auto add = [&](const char* name, const char* help, Run (*options)(CLI::App&)) {
    CLI::App* sub = app.add_subcommand(name, help);
    sub->callback([chosen, run = options(*sub)] { *chosen = run; });
  };
  add("pack", "Put short clips of videos, and photos, into a footage archive", add_data_pack);
  add("preview", "Show samples as training sees them: source, target and mask", add_data_preview);
  return [chosen] { return (*chosen)(); };
}

struct Command {
  const char* name;
  const char* help;
  Run (*add)(CLI::App&);
};

constexpr Command kCommands[] = {
    {"edit", "Edit a video by an instruction", add_edit},
    {"serve", "Edit what a camera sees, live on a page in the browser", add_serve},
    {"train", "Train an editor or an autoencoder from one JSON file, or go on with a run", add_train},
    {"eval", "Measure an editor on real clips against the exact edits", add_eval},
    {"search", "Find which number format each layer should multiply in, and check it", add_search},
    {"data", "Gather footage for training, and look at the samples made of it", add_data},
    {"vae", "Put a clip through a video autoencoder and measure what comes back", add_vae},
    {"inspect", "Show what is in a model, a file of weights or a config", add_inspect},
    {"quantize", "Write a transformer's weights in the formats of a precision policy", add_quantize},
    {"convert", "Turn published weights into one safetensors file, or make random ones", add_convert},
    {"models", "The published models: sizes, licences, where each file belongs, and whether it is right",
     add_models},
    {"provenance", "Read the invisible mark of a video", add_provenance},
    {"audit", "Check that an audit log is whole", add_audit},
    {"bench-dit", "Time the streaming transformer on the GPU", add_bench_dit},
    {"bench-text", "Time the text encoder on the GPU", add_bench_text},
    {"bench-vae", "Time the video autoencoder of LTX-2 on the GPU", add_bench_vae},
    {"bench-e2e", "Time encoder, transformer and decoder together on the GPU", add_bench_e2e},
    {"selftest", "Check every op against f64, and the models against golden files", add_selftest},
};

int run(int argc, char** argv) {
  CLI::App app("Edits video live from a text instruction.", "rivulet");
  app.require_subcommand(1);
  Run chosen;
  for (const Command& command : kCommands) {
    CLI::App* sub = app.add_subcommand(command.name, command.help);
    const Run action = command.add(*sub);
    sub->callback([&chosen, action] { chosen = action; });
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);  // --help
    std::cerr << "rivulet: " << e.what() << "\n";
    return 2;
  }
  return chosen();
}

// OpenMP's threads spin while they wait, which takes the cores from ffmpeg and from whatever else runs: an
// edit on a busy machine becomes ten times slower. The runtime reads its settings before main, so the program
// starts itself again with a short spin; when that fails it goes on as it is.
void wait_without_spinning(char** argv) {
  if (std::getenv("OMP_WAIT_POLICY") != nullptr || std::getenv("GOMP_SPINCOUNT") != nullptr) return;
  ::setenv("GOMP_SPINCOUNT", "2000", 1);
  ::execv("/proc/self/exe", argv);
}

}  // namespace
}  // namespace rivulet

int main(int argc, char** argv) {
  rivulet::wait_without_spinning(argv);
  // A reader that goes away is an error of that write, not the end of the program.
  ::signal(SIGPIPE, SIG_IGN);
  try {
    return rivulet::run(argc, argv);
  } catch (const std::bad_alloc&) {
    std::cerr << "rivulet: not enough memory\n";
  } catch (const std::exception& e) {
    std::cerr << "rivulet: " << e.what() << "\n";
  }
  return 2;
}
