// One line of the benchmark: a piece of work with its counts of bytes and operations.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace rivulet::bench {

struct Row {
  std::string name;  // unique: "matmul [512, 512] [512, 512]"
  std::string op;
  std::vector<Shape> shapes;
  std::function<void()> run;
  double bytes = 0, flops = 0;  // fewest bytes moved and operations of one run; 0 = not counted
  double frames = 0;            // of video that one run edits; 0 = none
  // Empty when the results are right, else what is wrong with them: the speed is then withheld.
  std::function<std::string()> red;
  // When given, writes inputs, weights and results as safetensors, so that another program can repeat the
  // work and prove that it is the same.
  std::function<void(const std::string& path)> save;
};

// Every op of ops/all.h at its benchmark shapes, in f32: forward alone, or with its backward.
std::vector<Row> op_rows(bool with_backward);
// The bundled network: one network call, one edited chunk, one training step.
std::vector<Row> network_rows();
// 30 frames of the bundled clip from file to file at 256x144, video decoding and encoding included.
Row video_row();

}  // namespace rivulet::bench
