#include <doctest/doctest.h>

#include <cstdio>

#include "ops/quantized_linear.h"
#include "quant/measure_cost.h"
#include "tensor/cuda.h"

using namespace rivulet;

TEST_CASE("costs measured on the GPU: a row for each product and copy of a format that it has") {
  if (!cuda_available()) {
    std::printf("skipped: no GPU\n");
    return;
  }
  const std::vector<Choice> choices = {Choice{Format::fp8}, Choice{Format::nvfp4, 16}};
  if (!runs_natively(Format::fp8, Device::cuda)) return;
  const std::vector<LayerWork> layers = {{0, Layer::sa_q, {256, 512, 1024}, 1, 0, 1024},
                                         {0, Layer::scores, {256, 512, 1024}, 1, 1, 1024}};
  const CostModel m = CostModel::from_json(measure_costs(layers, choices, Device::cuda, 5), "here");
  CHECK(m.source() == "measured");
  CHECK_FALSE(m.knows_scores());
  for (const Choice& c : {Choice{}, Choice{Format::fp8}, Choice{Format::fp8, 16}}) {
    REQUIRE(m.knows(c));
    const double us = m.product(layers[0].shape, c);
    CHECK(us > 0.5);
    CHECK(us < 5000);
  }
  CHECK(m.product(layers[0].shape, Choice{Format::fp8, 16}) >
        m.product(layers[0].shape, Choice{Format::fp8}));
  CHECK(m.copy(256, 1024, Choice{Format::fp8}) > 0);
}
