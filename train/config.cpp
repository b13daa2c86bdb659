#include "train/config.h"

#include <filesystem>

namespace rivulet {
namespace {

void read_optimizer(Fields f, TrainConfig& c) {
  std::vector<double> betas{c.optimizer.beta1, c.optimizer.beta2};
  f.optional("lr", c.schedule.lr, above(0));
  f.optional("betas", betas, from_below(0, 1));
  check(betas.size() == 2, f.where("betas"), " must hold 2 numbers, not ", betas.size());
  c.optimizer.beta1 = betas[0];
  c.optimizer.beta2 = betas[1];
  f.optional("eps", c.optimizer.eps, above(0));
  f.optional("weight_decay", c.optimizer.weight_decay, at_least(0));
  f.optional("clip_norm", c.clip_norm, at_least(0));
  for (Fields& g : f.objects("groups")) {
    ParamGroup group;
    g.required("pattern", group.pattern);
    g.optional("lr_scale", group.lr_scale, at_least(0));
    if (g.has("weight_decay")) g.required("weight_decay", group.weight_decay.emplace(), at_least(0));
    g.done();
    c.optimizer.groups.push_back(group);
  }
  f.done();
}

void read_schedule(Fields f, TrainConfig& c) {
  std::string kind = "constant";
  f.choice("kind", kind, {"constant", "cosine"});
  c.schedule.cosine = kind == "cosine";
  f.optional("warmup", c.schedule.warmup, at_least(0));
  f.optional("final_fraction", c.schedule.final_fraction, between(0, 1));
  c.schedule.steps = c.steps;
  f.done();
}

void read_flow(Fields f, FlowOptions& flow) {
  f.optional("shift", flow.shift, above(0));
  f.optional("logit_mean", flow.logit_mean);
  f.optional("logit_std", flow.logit_std, above(0));
  f.optional("text_dropout", flow.text_dropout, between(0, 1));
  f.optional("seam", flow.seam, between(0, 100));
  f.done();
}

void read_output(Fields f, TrainConfig& c) {
  f.required("dir", c.dir);
  check(!c.dir.empty(), f.where("dir"), " is empty");
  f.optional("checkpoint_every", c.checkpoint_every, at_least(0));
  f.optional("keep", c.keep, at_least(1));
  f.optional("sample_every", c.sample_every, at_least(0));
  f.optional("log_every", c.log_every, at_least(1));
  f.done();
}

Json read_model(Fields& f, const std::string& folder) {
  const Json model = f.raw("model");
  check(!model.is_null(), f.where("model"), " is missing");
  if (model.is_object()) return model;
  check(model.is_string(), f.where("model"), " must be an object or the path of a JSON file");
  const std::string path = (std::filesystem::path(folder) / model.get<std::string>()).string();
  const Json inlined = read_json(path);
  check(inlined.is_object(), path, ": the file must hold an object");
  return inlined;
}

}  // namespace

TrainConfig train_config(const Json& json, const std::string& source, const std::string& folder) {
  TrainConfig c;
  Fields f(json, source);
  f.choice("task", c.task, {"edit", "vae", "vae_distill", "flow", "ode", "self_forcing"});
  if (c.task == "self_forcing") {
    c.optimizer.beta1 = 0;
    c.optimizer.weight_decay = 0.01;
    c.clip_norm = 10;
    c.ema_decay = 0.99;
    c.ema_start = 200;
  }
  f.required("steps", c.steps, at_least(1));
  f.optional("batch", c.batch, at_least(1));
  f.optional("accumulate", c.accumulate, at_least(1));
  f.optional("seed", c.seed, at_least(0));
  std::string compute = "f32";
  f.choice("compute", compute, {"f32", "bf16"});
  check(compute == "f32" || c.task != "edit", f.where("compute"), " is ", compute,
        ", must be f32 for the task edit");
  c.compute = compute == "bf16" ? DType::bf16 : DType::f32;
  read_optimizer(f.object("optimizer"), c);
  read_schedule(f.object("schedule"), c);
  Fields ema = f.object("ema");
  ema.optional("decay", c.ema_decay, from_below(0, 1));
  ema.optional("start_step", c.ema_start, at_least(0));
  ema.done();
  read_flow(f.object("flow"), c.flow);
  Fields clip = f.object("clip");
  clip.optional("width", c.width, at_least(1));
  clip.optional("height", c.height, at_least(1));
  clip.optional("frames", c.frames, at_least(1));
  clip.done();
  if (f.has("data")) c.data = f.raw("data");
  check(c.data.is_object(), f.where("data"), " must be an object");
  if (f.has("loss")) c.loss = f.raw("loss");
  const bool vae = c.task == "vae" || c.task == "vae_distill", staged = !vae && c.task != "edit";
  check(c.loss.is_object() && (vae || c.loss.empty()), f.where("loss"),
        " must be an object, and empty but for autoencoders");
  if (f.has("stage")) c.stage = f.raw("stage");
  check(c.stage.is_object() && (staged || c.stage.empty()), f.where("stage"),
        " must be an object, and empty for the task ", c.task);
  c.model = read_model(f, folder);
  if (!f.has("output")) fail(f.where("output.dir"), " is missing");
  read_output(f.object("output"), c);
  f.done();
  return c;
}

TrainConfig read_train_config(const std::string& path) {
  return train_config(read_json(path), path, std::filesystem::path(path).parent_path().string());
}

Json to_json(const TrainConfig& c) {
  Json groups = Json::array();
  for (const ParamGroup& g : c.optimizer.groups) {
    Json group = {{"pattern", g.pattern}, {"lr_scale", g.lr_scale}};
    if (g.weight_decay) group["weight_decay"] = *g.weight_decay;
    groups.push_back(group);
  }
  Json j = {{"steps", c.steps},
            {"batch", c.batch},
            {"accumulate", c.accumulate},
            {"seed", c.seed},
            {"compute", c.compute == DType::bf16 ? "bf16" : "f32"},
            {"optimizer",
             {{"lr", c.schedule.lr},
              {"betas", {c.optimizer.beta1, c.optimizer.beta2}},
              {"eps", c.optimizer.eps},
              {"weight_decay", c.optimizer.weight_decay},
              {"clip_norm", c.clip_norm},
              {"groups", groups}}},
            {"schedule",
             {{"kind", c.schedule.cosine ? "cosine" : "constant"},
              {"warmup", c.schedule.warmup},
              {"final_fraction", c.schedule.final_fraction}}},
            {"ema", {{"decay", c.ema_decay}, {"start_step", c.ema_start}}},
            {"flow",
             {{"shift", c.flow.shift},
              {"logit_mean", c.flow.logit_mean},
              {"logit_std", c.flow.logit_std},
              {"text_dropout", c.flow.text_dropout},
              {"seam", c.flow.seam}}},
            {"clip", {{"width", c.width}, {"height", c.height}, {"frames", c.frames}}},
            {"data", c.data},
            {"model", c.model},
            {"output",
             {{"dir", c.dir},
              {"checkpoint_every", c.checkpoint_every},
              {"keep", c.keep},
              {"sample_every", c.sample_every},
              {"log_every", c.log_every}}}};
  if (c.task != "edit") {
    j["task"] = c.task;
    j["loss"] = c.loss;
    j["stage"] = c.stage;
  }
  return j;
}

}  // namespace rivulet
