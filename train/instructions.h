// How people ask for an edit: many sentences for each, over a closed list of words.
#pragma once

#include "models/vocabulary.h"
#include "tensor/random.h"
#include "train/edit.h"

namespace rivulet {

// A random way to ask for the edit.
std::string instruction(const Edit& edit, Rng& rng);
// A random way to ask for its undoing, given the edited picture.
std::string inverse_instruction(const Edit& edit, Rng& rng);
// The plainest way to ask for it: what evaluation and demonstrations use.
std::string canonical_instruction(const Edit& edit);
// Every way to ask for it, without courtesies.
std::vector<std::string> all_instructions(const Edit& edit);

// Every word that the functions above can produce, sorted.
Vocabulary instruction_vocabulary();

}  // namespace rivulet
