#include "apps/serve/live.h"

namespace rivulet::serve {
namespace {

// Of these, what the model was taught.
std::vector<std::string> examples_for(const Editor& editor) {
  std::vector<std::string> known;
  for (const char* text :
       {"turn it into a pencil sketch", "make it look like sunset", "make it night", "invert the colours",
        "make it black and white", "give it a sepia tone", "make the red things blue", "leave it alone"}) {
    try {
      editor.encode(text);
      known.push_back(text);
    } catch (const Error&) {
      // A model need not know every word.
    }
  }
  return known;
}

SessionInfo info_for(const LiveOptions& options, const Editor& editor, const Safeguards& safeguards) {
  SessionInfo info;
  info.model = editor.model().config().name;
  info.size = nearest_multiple(options.size, editor.size_multiple());
  info.chunk_frames = editor.chunk_frames();
  info.max_strength = safeguards.config().control.max_strength;
  info.examples = examples_for(editor);
  info.token = options.token;
  return info;
}

PipelineOptions pipeline_for(const LiveOptions& options, const Editor& editor, const Safeguards& safeguards) {
  return {&editor, &safeguards, nearest_multiple(options.size, editor.size_multiple()), {}, options.threads};
}

}  // namespace

Live::Live(const LiveOptions& options, const Editor& editor, const Safeguards& safeguards)
    : ledger_(options.ledger),
      session_(info_for(options, editor, safeguards), studio_, ledger_),
      server_(options.server, session_),
      studio_(pipeline_for(options, editor, safeguards), [this](int64_t number, Event event) {
        const auto shared = std::make_shared<Event>(std::move(event));
        server_.post(
            [this, number, shared] { return session_.event(number, std::move(*shared), steady_seconds()); });
      }) {}

}  // namespace rivulet::serve
