#include "models/golden_gemma2.h"

#include "models/gemma2/gemma2.h"

namespace rivulet {
namespace {

constexpr double kTolerance = 1e-4;

}  // namespace

bool is_gemma2_golden(const SafeTensors& file) {
  return file.contains("weights.embed_tokens.weight") && file.contains("out.sdpa");
}

std::vector<GoldenRow> run_gemma2_golden(const SafeTensors& file, Device device, DType dtype) {
  const NoGrad off;
  const auto config = file.metadata().find("config");
  check(config != file.metadata().end(), file.path(), ": the header has no 'config'");
  const std::string source = file.path() + ": config";
  Gemma2 model(read_gemma2_config(parse_json(config->second, source), source), device);
  load_tensors(named_tensors(model), file, "weights.");
  convert(model, dtype);
  model.embedding = model.embedding.to(Device::cpu);
  const Tensor ids = file.get("in.ids").to(DType::i64), mask = file.get("in.mask").to(DType::u8);
  const auto row = [&](const std::string& what, const std::string& name, bool soft_cap) {
    return GoldenRow{what, 1, relative_error(model(ids, mask, soft_cap), file.get(name)), name, kTolerance};
  };
  return {row("capped attention", "out.eager", true), row("plain attention", "out.sdpa", false)};
}

}  // namespace rivulet
