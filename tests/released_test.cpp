// The published models: their names and shapes against tables, files of their true sizes, and the two
// commands.
#include "models/released.h"

#include <doctest/doctest.h>

#include <sstream>

#include "models/ltx2_vae/names.h"
#include "models/ltx2_vae/vae.h"
#include "models/sana_streaming/fused_dit.h"
#include "ops/elementwise.h"
#include "tests/edit_fixtures.h"
#include "tests/sparse_weights.h"

using namespace rivulet;
namespace fs = std::filesystem;
namespace p = rivulet::pickled;

namespace {

// "name<TAB>[a,b,...]" below one line of heading.
NamedShapes read_table(const std::string& file) {
  std::istringstream in(read_file(RIVULET_SOURCE_DIR "/tests/data/" + file));
  std::string name, shape;
  std::getline(in, name);
  NamedShapes out;
  while (in >> name >> shape) {
    Shape dims;
    for (char& c : shape)
      if (c == '[' || c == ']' || c == ',') c = ' ';
    std::istringstream numbers(shape);
    for (int64_t n; numbers >> n;) dims.push_back(n);
    out[name] = dims;
  }
  return out;
}

// The transformer's table, as the published code lays it out.
NamedShapes sana_table(bool streaming) {
  constexpr int64_t C = 2240, E = 6 * C, nH = 20;
  NamedShapes t = {{"x_embedder.proj.weight", {C, 256, 1, 1, 1}},
                   {"x_embedder.proj.bias", {C}},
                   {"t_embedder.mlp.0.weight", {C, 256}},
                   {"t_embedder.mlp.0.bias", {C}},
                   {"t_embedder.mlp.2.weight", {C, C}},
                   {"t_embedder.mlp.2.bias", {C}},
                   {"t_block.1.weight", {6 * C, C}},
                   {"t_block.1.bias", {6 * C}},
                   {"y_embedder.y_proj.fc1.weight", {C, 2304}},
                   {"y_embedder.y_proj.fc1.bias", {C}},
                   {"y_embedder.y_proj.fc2.weight", {C, C}},
                   {"y_embedder.y_proj.fc2.bias", {C}},
                   {"attention_y_norm.weight", {C}},
                   {"final_layer.scale_shift_table", {2, C}},
                   {"final_layer.linear.weight", {128, C}},
                   {"final_layer.linear.bias", {128}}};
  for (int i = 0; i < 20; ++i) {
    const std::string b = "blocks." + std::to_string(i) + ".";
    const bool softmax = i % 4 == 3;
    const Shape qk = !softmax ? Shape{C, C, 1} : streaming ? Shape{C, C, 3} : Shape{C, C};
    const NamedShapes block = {{"scale_shift_table", {6, C}},
                               {"attn.q_norm.weight", {C}},
                               {"attn.k_norm.weight", {C}},
                               {"attn.q.weight", qk},
                               {"attn.k.weight", qk},
                               {"attn.v.weight", {C, C}},
                               {"attn.proj.weight", {C, C}},
                               {"attn.proj.bias", {C}},
                               {"attn.output_gate.weight", {C, C}},
                               {"attn.output_gate.bias", {C}},
                               {"cross_attn.q_linear.weight", {C, C}},
                               {"cross_attn.q_linear.bias", {C}},
                               {"cross_attn.kv_linear.weight", {2 * C, C}},
                               {"cross_attn.kv_linear.bias", {2 * C}},
                               {"cross_attn.proj.weight", {C, C}},
                               {"cross_attn.proj.bias", {C}},
                               {"cross_attn.q_norm.weight", {C}},
                               {"cross_attn.k_norm.weight", {C}},
                               {"mlp.inverted_conv.conv.weight", {E, C, 1, 1}},
                               {"mlp.inverted_conv.conv.bias", {E}},
                               {"mlp.depth_conv.conv.weight", {E, 1, 3, 3}},
                               {"mlp.depth_conv.conv.bias", {E}},
                               {"mlp.point_conv.conv.weight", {C, E / 2, 1, 1}},
                               {"mlp.t_conv.weight", {C, C, 3, 1}}};
    for (const auto& [name, shape] : block) t[b + name] = shape;
    if (softmax) continue;
    for (const char* rate : {"beta_proj", "gate_proj"}) {
      t[b + "attn." + rate + ".weight"] = {nH, C};
      t[b + "attn." + rate + ".bias"] = {nH};
    }
    t[b + "attn.A_log"] = t[b + "attn.dt_bias"] = {nH};
  }
  return t;
}

std::string refusal(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "nothing";
}
bool says(const std::string& text, const std::string& part) {
  CAPTURE(text);
  CAPTURE(part);
  const bool found = text.find(part) != text.npos;
  CHECK(found);
  return found;
}

Outcome rivulet_run(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), RIVULET_BIN);
  return run_program(arguments);
}

}  // namespace

TEST_CASE("names and shapes are those of the published files") {
  CHECK(released_model("sana-streaming-2b").tensors == sana_table(true));
  CHECK(released_model("sana-bidirectional-2b").tensors == sana_table(false));
  CHECK(released_model("gemma-2-2b-it").tensors == read_table("gemma2_2b_tensors.tsv"));
  CHECK(released_model("ltx2-vae").tensors == read_table("ltx2_vae_tensors.tsv"));
  CHECK(released_model("ltx2-vae-causal").tensors == read_table("ltx2_vae_tensors.tsv"));
  CHECK(released_model("taeltx2").tensors == read_table("taeltx2_tensors.tsv"));
  CHECK(released_model("sana-streaming-2b").tensors.size() == 586);  // and y_embedding
  CHECK(released_model("sana-streaming-2b").elements() == 2259529648);
  CHECK(released_model("sana-bidirectional-2b").elements() == 2159868848 - 300 * 2304);
  CHECK(released_model("gemma-2-2b-it").tensors.size() == 288);
  CHECK(released_model("ltx2-vae").tensors.size() == 184);
  for (const std::string& name : released_model_names()) {
    const ReleasedModel m = released_model(name);
    CHECK(m.name == name);
    CHECK_FALSE(m.licence.empty());
    CHECK_FALSE(m.repository.empty());
  }
  says(refusal([] { released_model("sana-streaming-3b"); }), "sana-streaming-2b, sana-bidirectional-2b");
}

TEST_CASE("the streaming transformer's file at its true size, beyond 4 GiB, in each of its wrappings") {
  const TempDir dir;
  const std::string path = dir / "sana.pth", last = "y_embedder.y_proj.fc2.weight";
  const ReleasedModel model = released_model("sana-streaming-2b");
  const auto check_file = [&](const NamedShapes& shapes, const std::string& marked, auto&& root) {
    write_sparse_torch(path, shapes, marked, root);
    CHECK(fs::file_size(path) > uint64_t(1) << 32);
    const WeightFile file = open_weights(path);
    const auto tensors = fitting_tensors(model, file);
    CHECK(tensors.size() == 586);
    const Tensor t = tensors.at(last);
    CHECK(t.dtype() == DType::bf16);
    CHECK(t.slice(0, 0, 1).slice(1, 0, 3).to(DType::f32).to_vector() == std::vector<double>{1, 2, 0});
  };
  NamedShapes all = sana_table(true);
  all["y_embedder.y_embedding"] = {300, 2304};
  all["pos_embed"] = {1, 484, 2240};
  check_file(all, last, [](const std::string& d) {
    return p::dict({{"generator", p::dict({{"state_dict", d}})}, {"step", p::integer(7)}});
  });
  NamedShapes prefixed;
  for (const auto& [name, shape] : sana_table(true)) prefixed["model.module." + name] = shape;
  check_file(prefixed, "model.module." + last, [](const std::string& d) {
    return p::dict({{"generator", d}});
  });
}

TEST_CASE("everything that does not fit is said at once") {
  const TempDir dir;
  const ReleasedModel model = released_model("taeltx2");
  NamedShapes wrong = model.tensors;
  wrong.erase("encoder.0.weight");
  wrong["decoder.22.weight"] = {48, 63, 3, 3};
  wrong["decoder.99.weight"] = {1};
  write_sparse_safetensors(dir / "w.safetensors", wrong);
  const WeightFile file = open_weights(dir / "w.safetensors");
  const std::string said = refusal([&] { fitting_tensors(model, file); });
  says(said, "missing encoder.0.weight [64, 48, 3, 3]");
  says(said, "decoder.22.weight has shape [48, 63, 3, 3], the model needs [48, 64, 3, 3]");
  says(said, "unknown decoder.99.weight [1]");
  says(said, "w.safetensors");
}

TEST_CASE("LTX-2's autoencoder under both naming schemes, alone and in a combined file") {
  CHECK(lightricks_vae_name("encoder.down_blocks.2.resnets.5.conv2.conv.bias") ==
        "encoder.down_blocks.4.res_blocks.5.conv2.conv.bias");
  CHECK(lightricks_vae_name("encoder.down_blocks.3.downsamplers.0.conv.conv.weight") ==
        "encoder.down_blocks.7.conv.conv.weight");
  CHECK(lightricks_vae_name("encoder.mid_block.resnets.1.conv1.conv.weight") ==
        "encoder.down_blocks.8.res_blocks.1.conv1.conv.weight");
  CHECK(lightricks_vae_name("decoder.mid_block.resnets.4.conv1.conv.weight") ==
        "decoder.up_blocks.0.res_blocks.4.conv1.conv.weight");
  CHECK(lightricks_vae_name("decoder.up_blocks.2.upsamplers.0.conv.conv.weight") ==
        "decoder.up_blocks.5.conv.conv.weight");
  CHECK(lightricks_vae_name("decoder.up_blocks.2.resnets.0.conv1.conv.weight") ==
        "decoder.up_blocks.6.res_blocks.0.conv1.conv.weight");
  CHECK(lightricks_vae_name("latents_std") == "per_channel_statistics.std-of-means");
  CHECK(lightricks_vae_name("decoder.conv_in.conv.bias") == "decoder.conv_in.conv.bias");

  const TempDir dir;
  const ReleasedModel model = released_model("ltx2-vae");
  const auto fits = [&](const NamedShapes& shapes) {
    write_sparse_safetensors(dir / "vae.safetensors", shapes);
    const WeightFile file = open_weights(dir / "vae.safetensors");
    return fitting_tensors(model, file).size();
  };
  CHECK(fits(model.tensors) == 184);
  NamedShapes theirs, combined = {{"model.diffusion_model.x.weight", {3, 3}}};
  for (const auto& [name, shape] : model.tensors) theirs[lightricks_vae_name(name)] = shape;
  CHECK(theirs.size() == 184);
  theirs["per_channel_statistics.channel"] = {128};
  theirs["per_channel_statistics.mean-of-stds"] = {128};
  CHECK(fits(theirs) == 184);
  for (const auto& [name, shape] : theirs) combined["vae." + name] = shape;
  CHECK(fits(combined) == 184);
  combined["vae.decoder.time_embedder.weight"] = {3};
  says(refusal([&] { fits(combined); }), "unknown decoder.time_embedder.weight [3]");
}

TEST_CASE("the transformer's weights reach both of its layouts") {
  const TempDir dir;
  DitConfig c;
  c.depth = 2;
  c.width = 32;
  c.heads = 2;
  c.softmax_blocks = {1};
  c.latent_channels = 3;
  c.caption_channels = 5;
  Dit source(c);
  Rng rng{4};
  std::map<std::string, Tensor> saved;
  for_each_tensor(source, [&](const std::string& name, Tensor& t) {
    t.copy_from(randn(t.shape(), rng));
    saved["model." + name] = t;
  });
  saved["model.y_embedder.y_embedding"] = zeros({300, 5});
  save_safetensors(dir / "dit.safetensors", saved);
  const WeightFile file = open_weights(dir / "dit.safetensors");

  Dit plain(c);
  load_dit(plain, file);
  for_each_tensor(plain, [&](const std::string& name, Tensor& t) {
    CHECK(t.to_vector() == saved.at("model." + name).to_vector());
  });
  FusedDit fused(c, DType::bf16, Device::cpu), copied(c, DType::bf16, Device::cpu);
  load_dit(fused.dit, file);
  copied.copy_from(source);
  const NamedTensors a = named_tensors(fused.dit), b = named_tensors(copied.dit);
  for (size_t i = 0; i < a.size(); ++i) CHECK(a[i].second.to_vector() == b[i].second.to_vector());
  CHECK(fused.blocks[1].qkvg.to_vector() == copied.blocks[1].qkvg.to_vector());

  c.variant = "bidirectional";
  Dit other(c);
  const std::string said = refusal([&] { load_dit(other, file); });
  says(said, "bidirectional transformer");
  says(said, "blocks.1.attn.q.weight has shape [32, 32, 3], the model needs [32, 32]");
}

TEST_CASE("a models folder: what is there, and where the rest belongs") {
  const TempDir dir;
  const ReleasedModel model = released_model("sana-streaming-2b");
  CHECK_FALSE(is_there(model, dir.path));
  const std::string said = refusal([&] { find_released(model, dir.path); });
  says(said, dir / "SANA-Streaming/dit/sana_streaming_ar.pth");
  says(said, dir / "sana-streaming-2b.safetensors");
  says(said, "Efficient-Large-Model/SANA-Streaming");
  fs::create_directories(dir / "SANA-Streaming/dit");
  write_bytes(dir / "SANA-Streaming/dit/sana_streaming_ar.pth", "x");
  CHECK(find_released(model, dir.path) == dir / "SANA-Streaming/dit/sana_streaming_ar.pth");
  write_bytes(dir / "sana-streaming-2b.safetensors", "x");  // a converted one comes first
  CHECK(find_released(model, dir.path) == dir / "sana-streaming-2b.safetensors");

  const Outcome all = rivulet_run({"models", "--models", dir.path});
  CHECK(all.code == 0);
  for (const std::string& name : released_model_names()) says(all.out, name + ": ");
  says(all.out, "Gemma Terms of Use");
  says(all.out, "2.260 G parameters, 4.519 GB in bf16");
  says(all.out, dir / "gemma-2-2b-it/model.safetensors.index.json");
  says(all.out, "here        " + dir.path + "/sana-streaming-2b.safetensors");
  const Outcome bad = rivulet_run({"models", "sana-streaming-2b", "--verify", "--models", dir.path});
  CHECK(bad.code == 1);
  says(bad.out, "neither a safetensors file nor a PyTorch file");
  CHECK(rivulet_run({"models", "sana-4b"}).code == 2);
  CHECK(rivulet_run({"models", "--from", "x"}).code == 2);
}

TEST_CASE("convert: random weights of a published model, verified, and the same again from the same seed") {
  const TempDir dir;
  const std::string path = dir / "models/taeltx2.safetensors", again = dir / "again.safetensors";
  const Outcome made = rivulet_run({"convert", "--random", "taeltx2", path, "--seed", "5"});
  CAPTURE(made.err);
  REQUIRE(made.code == 0);
  says(made.out, "128 tensors, 0.024 GB");
  CHECK(rivulet_run({"convert", "--random", "taeltx2", again, "--seed", "5"}).code == 0);
  CHECK(read_file(path) == read_file(again));
  CHECK(rivulet_run({"convert", "--random", "taeltx2", again, "--seed", "6"}).code == 0);
  CHECK(read_file(path) != read_file(again));
  const Outcome checked = rivulet_run({"models", "taeltx2", "--verify", "--models", dir / "models"});
  CHECK(checked.code == 0);
  says(checked.out, "is taeltx2, 128 tensors; weights: random, seed 5");
  CHECK(rivulet_run({"models", "taeltx2", "--from", again}).code == 0);

  // One value that is not a number.
  std::string spoilt = read_file(path);
  spoilt.replace(spoilt.size() - 2, 2, "\xc0\x7f");
  write_bytes(again, spoilt);
  const Outcome refused = rivulet_run({"models", "taeltx2", "--from", again});
  CHECK(refused.code == 1);
  says(refused.out, "not finite");
  const Outcome other = rivulet_run({"convert", path, dir / "o.safetensors", "--as", "ltx2-vae"});
  CHECK(other.code == 2);
  says(other.err, "unknown encoder.9.conv.4.weight [64, 64, 3, 3]");
  CHECK_FALSE(fs::exists(dir / "o.safetensors"));
}

TEST_CASE("convert: PyTorch to safetensors, types kept or changed") {
  const TempDir dir;
  const std::string in = dir / "w.pth", out = dir / "w.safetensors";
  const std::string data = raw_bytes(std::vector<float>{0, 1, 2, 3, 4, 5.0078125f}),
                    ids = raw_bytes(std::vector<int64_t>{7});
  write_bytes(
      in,
      torch_zip(
          p::dict({{"state_dict", p::dict({{"turned", p::tensor("FloatStorage", "0", 6, 0, {3, 2}, {1, 3})},
                                           {"whole", p::tensor("FloatStorage", "0", 6, 0, {6}, {1})},
                                           {"id", p::tensor("LongStorage", "1", 1, 0, {}, {})}})}}),
          {data, ids})
          .bytes());
  REQUIRE(rivulet_run({"convert", in, out}).code == 0);
  SafeTensors kept(out);
  CHECK(kept.get("turned").dtype() == DType::f32);
  CHECK(kept.get("turned").to_vector() == std::vector<double>{0, 3, 1, 4, 2, 5.0078125});
  CHECK(kept.get("id").item() == 7);
  REQUIRE(rivulet_run({"convert", in, out, "--dtype", "bf16"}).code == 0);
  SafeTensors halved(out);
  CHECK(halved.get("whole").dtype() == DType::bf16);
  CHECK(halved.get("whole").to_vector() == std::vector<double>{0, 1, 2, 3, 4, 5});
  CHECK(halved.get("id").dtype() == DType::i64);

  const auto refused = [&](const std::vector<std::string>& arguments, const std::string& part) {
    std::vector<std::string> all = {"convert"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    const Outcome o = rivulet_run(all);
    CHECK(o.code == 2);
    says(o.err, part);
  };
  refused({in, in}, "not a .safetensors");
  refused({out, out}, "the input itself");
  refused({out}, "wants a file of weights, or --random");
  refused({in, out, "--random", "taeltx2"}, "wants a file of weights, or --random");
  refused({in, out, "--dtype", "int4"}, "--dtype int4");
  refused({dir.path, out}, "folder");
  write_bytes(dir / "empty.pth", "");
  refused({dir / "empty.pth", out}, "empty");
  write_bytes(dir / "evil.pth", torch_zip(p::call(p::global("os", "system"), {p::text("true")}), {}).bytes());
  refused({dir / "evil.pth", out}, "os.system");
}
