#include "train/config.h"

#include <doctest/doctest.h>

#include <filesystem>

#include "tensor/safetensors.h"

using namespace rivulet;

namespace {

const char kSmall[] = R"({"steps": 10, "model": {"width": 8}, "output": {"dir": "runs/a"}})";

// The config with one more member, given as JSON text: at the top or inside an object.
TrainConfig with(const std::string& where, const std::string& name, const std::string& value) {
  Json j = Json::parse(kSmall);
  (where.empty() ? j : j[where])[name] = Json::parse(value);
  return train_config(j, "a.json");
}

void refuses(const std::string& where, const std::string& name, const std::string& value, const char* text) {
  CAPTURE(where);
  CAPTURE(name);
  CAPTURE(value);
  CHECK_THROWS_WITH_AS(with(where, name, value), doctest::Contains(text), Error);
}

}  // namespace

TEST_CASE("a small config gets the recipe's defaults and survives a round trip") {
  const TrainConfig c = train_config(Json::parse(kSmall), "a.json");
  CHECK(c.steps == 10);
  CHECK(c.flow.shift == 3);
  CHECK(c.flow.text_dropout == 0.1);
  CHECK(c.schedule.steps == 10);
  CHECK(c.model == Json{{"width", 8}});
  CHECK(to_json(train_config(to_json(c), "again")) == to_json(c));
}

TEST_CASE("every field of a full config is read") {
  const Json full = Json::parse(R"({
    "steps": 3e3, "batch": 8, "accumulate": 2, "seed": 7, "compute": "f32",
    "optimizer": {"lr": 5e-4, "betas": [0.8, 0.95], "eps": 1e-10, "weight_decay": 0.01, "clip_norm": 0.1,
                  "groups": [{"pattern": "*.bias", "lr_scale": 2.0, "weight_decay": 0.0}]},
    "schedule": {"kind": "cosine", "warmup": 100, "final_fraction": 0.05},
    "ema": {"decay": 0.99, "start_step": 200},
    "flow": {"shift": 2.0, "logit_mean": 0.5, "logit_std": 1.5, "text_dropout": 0.2, "seam": 0.5},
    "clip": {"width": 64, "height": 48, "frames": 5},
    "data": {"kind": "edits"}, "model": {"blocks": 4},
    "output": {"dir": "x", "checkpoint_every": 5, "keep": 2, "sample_every": 6, "log_every": 3}})");
  const TrainConfig c = train_config(full, "full.json");
  CHECK(c.steps == 3000);
  CHECK(c.optimizer.groups.at(0).weight_decay == 0.0);
  CHECK(c.schedule.cosine);
  Json expected = full;
  expected["steps"] = 3000;
  CHECK(to_json(c) == expected);
}

TEST_CASE("unknown fields are refused by their full path") {
  refuses("", "step", "1", "a.json: unknown field step (known here: accumulate, batch, clip,");
  refuses("optimizer", "beta1", "0.9", "unknown field optimizer.beta1");
  refuses("optimizer", "groups", R"([{"pattern": "*"}, {"pattern": "*", "decay": 1}])",
          "unknown field optimizer.groups[1].decay");
  refuses("schedule", "warm_up", "3", "unknown field schedule.warm_up");
  refuses("ema", "start", "3", "unknown field ema.start");
  refuses("flow", "std", "1", "unknown field flow.std");
  refuses("clip", "length", "1", "unknown field clip.length");
  refuses("output", "folder", "1", "unknown field output.folder");
}

TEST_CASE("wrong types and values out of range are refused with path and value") {
  refuses("", "steps", "0", "a.json: steps is 0, must be at least 1");
  refuses("", "steps", "2.5", "steps must be a whole number, not 2.5");
  refuses("", "steps", "1e300", "steps must be a whole number");
  refuses("", "steps", "\"10\"", "steps must be a whole number, not \"10\"");
  refuses("", "batch", "null", "batch must be a whole number, not null");
  refuses("", "batch", "true", "batch must be a whole number, not true");
  refuses("", "accumulate", "-1", "accumulate is -1");
  refuses("", "seed", "-1", "seed is -1, must be at least 0");
  refuses("", "compute", "\"fp8\"", "compute");
  refuses("", "compute", "\"bf16\"", "must be f32 for the task edit");
  refuses("", "optimizer", "[]", "optimizer must be an object, not a list");
  refuses("optimizer", "lr", "0", "optimizer.lr is 0, must be above 0");
  refuses("optimizer", "betas", "[0.9, 1]", "optimizer.betas[1] is 1, must be at least 0 and below 1");
  refuses("optimizer", "betas", "[0.9]", "optimizer.betas must hold 2 numbers, not 1");
  refuses("optimizer", "betas", "[0.9, \"x\"]", "optimizer.betas[1] must be a number, not \"x\"");
  refuses("optimizer", "eps", "0", "optimizer.eps is 0");
  refuses("optimizer", "weight_decay", "-0.1", "optimizer.weight_decay is -0.1");
  refuses("optimizer", "clip_norm", "-1", "optimizer.clip_norm is -1");
  refuses("optimizer", "groups", "[{}]", "optimizer.groups[0].pattern is missing");
  refuses("optimizer", "groups", R"([{"pattern": "*", "lr_scale": -1}])",
          "optimizer.groups[0].lr_scale is -1");
  refuses("schedule", "kind", "\"linear\"", "schedule.kind is \"linear\", must be one of constant, cosine");
  refuses("schedule", "warmup", "-5", "schedule.warmup is -5");
  refuses("schedule", "final_fraction", "1.5", "schedule.final_fraction is 1.5");
  refuses("ema", "decay", "1", "ema.decay is 1, must be at least 0 and below 1");
  refuses("ema", "start_step", "-1", "ema.start_step is -1");
  refuses("flow", "shift", "0", "flow.shift is 0");
  refuses("flow", "logit_mean", "[]", "flow.logit_mean must be a number, not a list");
  refuses("flow", "logit_std", "0", "flow.logit_std is 0");
  refuses("flow", "text_dropout", "1.1", "flow.text_dropout is 1.1, must be at least 0 and at most 1");
  refuses("clip", "width", "0", "clip.width is 0");
  refuses("clip", "height", "0", "clip.height is 0");
  refuses("clip", "frames", "0", "clip.frames is 0");
  refuses("", "data", "3", "data must be an object");
  refuses("", "model", "3", "model must be an object or the path");
  refuses("output", "dir", "\"\"", "output.dir is empty");
  refuses("output", "dir", "{}", "output.dir must be a text, not an object");
  refuses("output", "checkpoint_every", "-1", "output.checkpoint_every is -1");
  refuses("output", "keep", "0", "output.keep is 0");
  refuses("output", "sample_every", "-1", "output.sample_every is -1");
  refuses("output", "log_every", "0", "output.log_every is 0");
}

TEST_CASE("missing fields, broken JSON and keys given twice are refused") {
  auto refuses_text = [](const char* json, const char* text) {
    CHECK_THROWS_WITH_AS(train_config(parse_json(json, "b.json"), "b.json"), doctest::Contains(text), Error);
  };
  refuses_text(R"({"model": {}, "output": {"dir": "x"}})", "b.json: steps is missing");
  refuses_text(R"({"steps": 1, "output": {"dir": "x"}})", "b.json: model is missing");
  refuses_text(R"({"steps": 1, "model": {}})", "b.json: output.dir is missing");
  refuses_text("[1, 2]", "b.json: the file must be an object, not a list");
  refuses_text("{\"steps\": 1,", "b.json: not valid JSON");
  refuses_text("", "b.json: not valid JSON");
  refuses_text(R"({"steps": 1, "model": {"a": {"x": 1}, "b": {"x": 1, "x": 2}}})",
               "the field x stands twice");
}

TEST_CASE("a model given as a path is read beside the config and stands inline") {
  const std::filesystem::path dir = std::filesystem::temp_directory_path() / "rivulet_config_test";
  std::filesystem::create_directories(dir / "models");
  write_file((dir / "models/tiny.json").string(), R"({"width": 16})");
  write_file((dir / "train.json").string(),
             R"({"steps": 1, "model": "models/tiny.json", "output": {"dir": "x"}})");
  CHECK(read_train_config((dir / "train.json").string()).model == Json{{"width", 16}});
  write_file((dir / "models/tiny.json").string(), "[]");
  CHECK_THROWS_WITH_AS(read_train_config((dir / "train.json").string()), doctest::Contains("tiny.json"),
                       Error);
  std::filesystem::remove_all(dir);
}

TEST_CASE("the training configurations of the zoo are valid") {
  int found = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(RIVULET_SOURCE_DIR "/models")) {
    const std::string name = entry.path().filename().string();
    if (name.rfind("train", 0) != 0 || entry.path().extension() != ".json") continue;
    ++found;
    CAPTURE(entry.path().string());
    CHECK_NOTHROW(read_train_config(entry.path().string()));
  }
  CHECK(found > 0);
}
