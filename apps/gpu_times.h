// What the commands that time the GPU report alike: series of milliseconds, and sums over named pieces of work.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "nn/config.h"
#include "tensor/cuda_event.h"

namespace rivulet {

// Of a series, by linear interpolation; q in [0, 1].
double quantile(std::vector<double> values, double q);
// Count, median, 99th percentile, least.
Json times_json(const std::vector<double>& ms);

// Receives the names of pieces of work as they end, each with an event of the stream.
class PieceTimes {
 public:
  // The start of the first piece.
  void begin();
  void end_piece(const std::string& name);
  // Milliseconds of all pieces of each name; waits for the last.
  std::map<std::string, double> sums() const;

 private:
  void mark();
  std::vector<std::string> names_;
  std::vector<CudaEvent> events_;
};

}  // namespace rivulet
