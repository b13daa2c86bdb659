// What a search has measured so far, in a folder: it can be stopped at any moment and goes on where it was.
// Every entry is written whole or not at all, and only entries of the same settings are ever read.
#pragma once

#include <map>
#include <optional>

#include "nn/config.h"
#include "tensor/tensor.h"

namespace rivulet {

// Of one option alone on the calibration clips.
struct SingleErrors {
  Tensor free, forced;  // f32 [clips, sketch]: error vectors as gram.h's sketch leaves them
};

class Journal {
 public:
  // Makes the folder, or opens the one of an earlier run. Throws when that one had other settings.
  Journal(const std::string& dir, const Json& settings);

  const std::string& dir() const { return dir_; }
  std::optional<SingleErrors> single(const std::string& name) const;
  void put_single(const std::string& name, const SingleErrors& errors);
  // Squared relative errors of a policy on clips, by a name for both.
  std::optional<std::vector<double>> measured(const std::string& key) const;
  void put_measured(const std::string& key, const std::vector<double>& values);

 private:
  std::string path(const std::string& name) const { return dir_ + "/" + name; }
  std::string dir_;
  std::map<std::string, std::vector<double>> measured_;
};

}  // namespace rivulet
