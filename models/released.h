// The published models that run here: what their files hold, what they are licensed under and where a models
// folder keeps them. Nothing is ever fetched: whoever has the files puts them there.
#pragma once

#include "models/sana_streaming/checkpoint.h"

namespace rivulet {

struct ReleasedModel {
  std::string name;        // "sana-streaming-2b"
  std::string what;        // one line
  std::string repository;  // on huggingface.co
  std::string file;        // there
  std::string licence;     // as the repository states it, to be read there
  // Below a models folder, the first that exists counts: as `rivulet convert` writes it, then as published.
  std::vector<std::string> places;
  NamedShapes tensors;   // under our names
  NamedShapes optional;  // that a file may hold besides
  // The tensors of a file under our names, and how random ones are drawn.
  std::map<std::string, Tensor> (*own_names)(const WeightFile& file);
  RandomWeight (*random)(const std::string& name, const Shape& shape);

  int64_t elements() const;
};

std::vector<std::string> released_model_names();
// Throws on any other name, listing these.
ReleasedModel released_model(const std::string& name);

// Where the model is below the folder; throws an Error that names every place looked at and the repository.
std::string find_released(const ReleasedModel& model, const std::string& folder);
bool is_there(const ReleasedModel& model, const std::string& folder);

// The model's weights in the file under our names, those that nothing reads left out. Throws one Error that
// lists everything that does not fit.
std::map<std::string, Tensor> fitting_tensors(const ReleasedModel& model, const WeightFile& file);

}  // namespace rivulet
