// SANA-Streaming's whole chain with shrunken networks: against the plain models, from files, and from video
// to video.
#include "models/sana_editor.h"

#include <fstream>
#include <sstream>

#include "apps/edit_stream.h"
#include "apps/video.h"
#include "models/ltx2_vae/names.h"
#include "models/released.h"
#include "ops/elementwise.h"
#include "ops/image.h"
#include "ops/shape.h"
#include "tests/edit_fixtures.h"

using namespace rivulet;

namespace {

DitConfig small_dit() {
  DitConfig c;
  c.depth = 4;
  c.width = 48;
  c.heads = 2;
  c.softmax_blocks = {1, 3};
  c.latent_channels = 8;
  c.caption_channels = 16;
  return c;
}

// 32 pixels and 8 frames a latent, as published.
VideoVaeConfig small_vae() {
  VideoVaeConfig c;
  c.latent_channels = 8;
  c.encoder_width = 8;
  c.encoder = {{1, {1, 2, 2}, 8}, {1, {2, 1, 1}, 16}, {1, {2, 2, 2}, 16}, {1, {2, 2, 2}, 32}};
  c.encoder_mid_layers = 1;
  c.decoder_width = 32;
  c.decoder_mid_layers = 1;
  c.decoder = {{1, {2, 2, 2}, 16}, {1, {2, 2, 2}, 8}, {1, {2, 2, 2}, 8}};
  return c;
}

struct Models {
  Dit dit;
  VideoVae vae;
  Tensor rows, mask = ones({1, 6}, DType::u8);
  SanaWeights weights;

  Models() : dit(small_dit()), vae(small_vae()), weights(small_dit(), small_vae(), DType::f32, Device::cpu) {
    const NoGrad off;
    Rng rng{11};
    dit.initialise(rng);
    for (const auto& [name, t] : named_tensors(dit)) t.add_in_place(randn(t.shape(), rng), 0.1);
    vae.initialise(rng);
    vae.latents_mean.copy_from(randn({8}, rng) * 0.1);
    vae.latents_std.copy_from(rand_uniform({8}, 0.5, 2, rng));
    rows = randn({1, 6, 16}, rng);
    mask.slice(1, 4, 6).fill(0);
    weights.dit.copy_from(dit);
    weights.vae.copy_from(vae);
  }

  // The same chunks by the plain models.
  Tensors plainly(const Tensor& frames, const SanaOptions& o, int64_t chunks) const {
    const NoGrad off;
    const TextContext text = dit.text_context(rows, mask);
    Rng rng{o.seed};
    VideoState encoding, decoding;
    StreamState state;
    Tensors out;
    int64_t at = 0;
    for (int64_t c = 0; c < chunks; ++c) {
      const int64_t n = c == 0 ? 33 : 24;
      const Tensor pixels = (u8_to_unit(frames.slice(0, at, at + n).contiguous()) * 2.0 - 1.0).unsqueeze(0);
      const Tensor source = vae.encode(pixels, encoding);
      const Tensor noise = randn(source.shape(), rng);
      Tensor last;
      const auto velocity = [&](const Tensor& x, double t, double) {
        last = x;
        return dit(cat({x, source}, 1), full({1}, t), text, &state);
      };
      const Tensor x0 = sample(velocity, noise, {.steps = o.steps, .renoise = false}, rng);
      StreamState next;
      if (o.efficient_cache)
        dit(cat({last, source}, 1), full({1}, o.steps.back()), text, &state, &next);
      else
        dit(cat({x0, source}, 1), zeros({1}), text, &state, &next);
      state = next;
      out.push_back(unit_to_u8((vae.decode(x0, decoding).select(0, 0) * 0.5 + 0.5).contiguous()));
      at += n;
    }
    return out;
  }
};

double most_apart(const Tensor& a, const Tensor& b) {
  REQUIRE(a.shape() == b.shape());
  double worst = 0;
  for (int64_t i = 0; i < a.numel(); ++i)
    worst = std::max(worst, std::abs(double(a.data<uint8_t>()[i]) - double(b.data<uint8_t>()[i])));
  return worst;
}

}  // namespace

TEST_CASE("the editor does what the plain models do, with either cache and any step list") {
  const Models m;
  const Tensor frames = moving_picture(33 + 24 + 24, 64, 96);
  for (const auto& [steps, efficient] :
       {std::pair{default_steps(4), false}, {default_steps(4), true}, {default_steps(3, 5), false}}) {
    const SanaOptions o{.height = 64, .width = 96, .steps = steps, .efficient_cache = efficient, .seed = 9};
    SanaEditor editor(m.weights, o);
    editor.set_text(m.rows, m.mask);
    const Tensors want = m.plainly(frames, o, 3);
    int64_t at = 0;
    for (const Tensor& plain : want) {
      const int64_t n = editor.next_frames();
      CHECK(n == (at == 0 ? 33 : 24));
      const Tensor got = editor.step(frames.slice(0, at, at + n).contiguous());
      CHECK(most_apart(got, plain) <= 1);  // a value beside a rounding edge
      at += n;
    }
    CHECK(editor.times().size() == 3);
    CHECK(editor.times()[2].denoise > 0);
  }
  CHECK(most_apart(m.plainly(frames, {.steps = default_steps(4), .seed = 9}, 2)[1],
                   m.plainly(frames, {.steps = default_steps(4), .efficient_cache = true, .seed = 9}, 2)[1]) >
        1);
}

TEST_CASE("step counts: published lists for 4 and 2, shifted levels for others") {
  CHECK(default_steps(4) == std::vector<double>{1000, 961, 893, 743});
  CHECK(default_steps(4, 3) == default_steps(4));
  CHECK(default_steps(2, 3) == std::vector<double>{1000, 743});
  CHECK(default_steps(3, 3) == std::vector<double>{1000, 857, 600});  // 3 u / (1 + 2 u) at 1, 2/3, 1/3
  CHECK_THROWS_AS(default_steps(3, 0), Error);
}

TEST_CASE("what does not fit is refused, and so is a network that gives no numbers") {
  Models m;
  SanaEditor editor(m.weights, {.height = 64, .width = 96});
  editor.set_text(m.rows, m.mask);
  CHECK_THROWS_WITH_AS(editor.step(moving_picture(24, 64, 96)), doctest::Contains("u8 [33, 64, 96, 3]"),
                       Error);
  CHECK_THROWS_AS(SanaEditor(m.weights, {.height = 60, .width = 96}), Error);
  CHECK_THROWS_AS(SanaEditor(m.weights, {.height = 64, .width = 96, .steps = {}}), Error);
  m.weights.dit.dit.final_linear.bias.fill(std::nan(""));
  CHECK_THROWS_WITH_AS(editor.step(moving_picture(33, 64, 96)), doctest::Contains("not finite in chunk 0"),
                       Error);
}

TEST_CASE("the autoencoder from a file: both naming schemes, bf16, and made causal") {
  const NoGrad off;
  const TempDir dir;
  Models m;
  std::map<std::string, Tensor> ours, theirs;
  for_each_tensor(m.vae, [&](const std::string& name, Tensor& t) {
    t.copy_from(t.to(DType::bf16));
    ours[name] = t.to(DType::bf16);
    theirs["vae." + lightricks_vae_name(name)] = t;
  });
  save_safetensors(dir / "ours.safetensors", ours);
  save_safetensors(dir / "theirs.safetensors", theirs);
  const auto same = [](const PackedVae& a, const PackedVae& b) {
    CHECK(a.encoder.conv_out.w.to_vector() == b.encoder.conv_out.w.to_vector());
    for (size_t i = 0; i < a.decoder.stages.size(); ++i)
      CHECK(a.decoder.stages[i].convs[1].w.to_vector() == b.decoder.stages[i].convs[1].w.to_vector());
    CHECK(a.latents_std.to_vector() == b.latents_std.to_vector());
  };
  PackedVae want(small_vae(), DType::f32, Device::cpu), got(small_vae(), DType::f32, Device::cpu);
  want.copy_from(m.vae);
  load_vae(got, dir / "ours.safetensors", false);
  same(got, want);
  load_vae(got, dir / "theirs.safetensors", false);
  same(got, want);
  load_vae(got, dir / "theirs.safetensors", true);
  remap_to_causal(m.vae.decoder);
  want.copy_from(m.vae);
  same(got, want);
  ours.erase("decoder.conv_in.conv.bias");
  save_safetensors(dir / "ours.safetensors", ours);
  CHECK_THROWS_WITH_AS(load_vae(got, dir / "ours.safetensors", false),
                       doctest::Contains("missing decoder.conv_in.conv.bias [32]"), Error);
}

TEST_CASE("a 1920x1080 clip of 41 frames: number and size of frames, sound and time stamps") {
  NEEDS_FFMPEG();
  const TempDir dir;
  const Models m;
  const std::string in = dir / "in.mp4", out = dir / "out.mp4";
  ffmpeg({"-f", "lavfi", "-i", "testsrc2=size=1920x1080:rate=30000/1001:duration=1.36", "-f", "lavfi", "-i",
          "sine=frequency=440:duration=1.4", "-frames:v", "41", "-preset", "ultrafast", "-c:a", "aac", in});
  const FrameSize shown{1280, 704}, inner{160, 96};
  const auto source = open_source(in, {.size = shown, .image_rate = {}});
  CHECK(source->info().size == shown);
  SanaEditor editor(m.weights, {.height = inner.height, .width = inner.width});
  editor.set_text(m.rows, m.mask);
  const auto sink = open_sink(out, source->info());
  EditStream stream;
  stream.source = source.get();
  stream.tracks.push_back({"edit", [&](const Tensor& f) { return editor.step(f); }, sink.get()});
  stream.chunk_frames = [&] { return editor.next_frames(); };
  stream.inner = inner;
  stream.outer = shown;
  CHECK(run(stream) == 41);  // 33, and 8 of the next 24
  CHECK(sink->finish().empty());
  CHECK(probe_value(out, "width") == "1280");
  CHECK(probe_value(out, "height") == "704");
  CHECK(probe_value(out, "r_frame_rate") == "30000/1001");
  CHECK(probe_value(out, "nb_frames") == "41");
  CHECK(probe_value(out, "codec_type", "a:0") == "audio");
  const auto stamps = [](const std::string& path) {
    return run_for_output({"ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries",
                           "packet=pts_time", "-of", "csv=p=0", path});
  };
  const auto sorted = [](const std::string& text) {
    std::istringstream lines(text);
    std::vector<double> all;
    for (double t; lines >> t;) all.push_back(t);
    std::sort(all.begin(), all.end());
    return all;
  };
  const auto before = sorted(stamps(in)), after = sorted(stamps(out));
  REQUIRE(after.size() == 41);
  REQUIRE(before.size() == 41);
  for (size_t i = 0; i < 41; ++i) CHECK(std::abs(after[i] - before[i]) < 1e-3);
}

TEST_CASE("edit --model sana-streaming-2b says what is missing and what it does not take") {
  const TempDir dir;
  const auto refused = [&](std::vector<std::string> more, const std::string& part) {
    std::vector<std::string> all = {dir / "in.y4m",  "-p",      "make it night",     "-o",
                                    dir / "out.y4m", "--model", "sana-streaming-2b", "--models",
                                    dir.path};
    all.insert(all.end(), more.begin(), more.end());
    const Outcome o = rivulet_edit(all);
    CAPTURE(o.err);
    CHECK(o.code == 2);
    CHECK(o.err.find(part) != o.err.npos);
  };
  refused(
      {},
      "sana-streaming-2b: not found; put dit/sana_streaming_ar.pth of Efficient-Large-Model/SANA-Streaming");
  refused({"--state", dir / "s"}, "--state is not kept");
  refused({"--cached-chunks", "0"}, "--cached-chunks");
  std::filesystem::create_directories(dir / "SANA-Streaming/dit");
  std::ofstream(dir / "SANA-Streaming/dit/sana_streaming_ar.pth") << "x";
  refused({}, "ltx2-vae-causal: not found");
}
