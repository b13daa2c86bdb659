#include "apps/serve/session.h"

#include "apps/serve/access.h"

namespace rivulet::serve {
namespace {

using Json = nlohmann::json;

constexpr double kLedgerSeconds = 0.5;

std::shared_ptr<const std::string> shared(std::string text) {
  return std::make_shared<const std::string>(std::move(text));
}
Out say(ClientId to, std::string text) { return {to, Out::Kind::text, shared(std::move(text))}; }
Out close(ClientId to, std::string reason) { return {to, Out::Kind::close, shared(std::move(reason))}; }

Outs turn_away(ClientId id, const std::string& code, const std::string& text) {
  return {say(id, refused_message("hello", code, text)), close(id, code)};
}

}  // namespace

Session::Session(SessionInfo info, EditControl& control, Ledger& ledger)
    : info_(std::move(info)), control_(control), ledger_(ledger) {}

void Session::connected(ClientId id, double now) { clients_[id].since = now; }

Outs Session::text(ClientId id, std::string_view message, double now) {
  const auto it = clients_.find(id);
  if (it == clients_.end()) return {};
  if (!it->second.controls.take(now)) return {close(id, "too many messages")};
  try {
    return dispatch(id, parse_text(message), now);
  } catch (const Error& e) {
    return fault(id, e.what(), now);
  }
}

Outs Session::picture(ClientId id, std::shared_ptr<const std::string> message, double now) {
  const auto it = clients_.find(id);
  if (it == clients_.end()) return {};
  if (id != editor_) return fault(id, "picture: only the editor sends frames", now);
  // A camera that is too fast loses frames; it is not thrown out for it.
  if (!it->second.frames.take(now) || !it->second.bytes.take(now, double(message->size()))) return {};
  try {
    const Picture p = parse_frame(*message);
    check(p.header.sequence > last_sequence_, "picture: frame ", p.header.sequence, " does not come after ",
          last_sequence_);
    last_sequence_ = p.header.sequence;
    control_.frame({p.header, std::move(message), now});
  } catch (const Error& e) {
    return fault(id, e.what(), now);
  }
  return {};
}

Outs Session::dispatch(ClientId id, const ClientMessage& message, double now) {
  const Client& client = clients_.at(id);
  if (const auto* h = std::get_if<Hello>(&message)) {
    check(!client.known, "hello: was said already");
    return hello(id, *h);
  }
  check(client.known, "message: the first one is a hello");
  check(id == editor_, "message: viewers only listen");
  if (const auto* m = std::get_if<Instruct>(&message)) {
    control_.instruct(*m);
  } else if (const auto* m = std::get_if<Settings>(&message)) {
    Settings s = *m;
    if (s.strength) settings_.strength = s.strength = std::min(*s.strength, info_.max_strength);
    if (s.seed) settings_.seed = s.seed;
    if (s.steps) settings_.steps = s.steps;
    control_.apply(s);
    return to_all(state());
  } else if (const auto* m = std::get_if<Protect>(&message)) {
    regions_ = m->regions;
    control_.protect(m->regions);
    return to_all(state());
  } else if (std::holds_alternative<Reset>(message)) {
    control_.reset();
  } else if (const auto* m = std::get_if<Shown>(&message)) {
    ledger_.shown(m->latency_ms, m->skipped, now);
  }
  return {};
}

Outs Session::hello(ClientId id, const Hello& h) {
  if (!info_.token.empty() && !same_secret(h.token, info_.token))
    return turn_away(id, "token", "This address needs the token that the server printed when it started.");
  if (h.role == Role::editor && editing())
    return turn_away(id, "taken", "Someone is editing already. You can watch.");
  if (h.role == Role::viewer && int64_t(viewers()) >= kMaxViewers)
    return turn_away(id, "full", "As many are watching as this server takes.");
  Client& client = clients_.at(id);
  client.known = true;
  client.role = h.role;
  if (h.role == Role::viewer) return {say(id, welcome(h.role)), say(id, state())};
  editor_ = id;
  last_sequence_ = 0;
  instruction_.clear();
  settings_ = {std::min(1.0, info_.max_strength), 0, 4};
  regions_.clear();
  ledger_.begin();
  control_.begin(++number_);
  control_.apply(settings_);
  Outs outs = {say(id, welcome(h.role))};
  for (Out& out : to_all(state())) outs.push_back(std::move(out));
  return outs;
}

Outs Session::gone(ClientId id) {
  clients_.erase(id);
  if (id != editor_) return {};
  editor_ = 0;
  instruction_.clear();
  control_.end();
  return to_all(state());
}

Outs Session::event(int64_t number, Event event, double now) {
  // What an editing that is over still had in hand is nobody's.
  if (number != number_ || !editing()) return {};
  if (auto* e = std::get_if<EditedChunk>(&event)) {
    ledger_.add(e->row, now);
    Outs outs;
    for (const EditedFrame& f : e->frames)
      for (const auto& [id, client] : clients_) {
        if (!client.known) continue;
        if (client.role == Role::viewer) outs.push_back({id, Out::Kind::picture, f.source});
        outs.push_back({id, Out::Kind::picture, f.edited});
      }
    return outs;
  }
  if (auto* e = std::get_if<Instructed>(&event)) {
    instruction_ = e->text;
    return to_all(state());
  }
  if (auto* e = std::get_if<InstructionRefused>(&event))
    return {say(editor_, refused_message("instruct", e->code, e->reason))};
  const auto& e = std::get<Notice>(event);
  if (e.code == "frame") return fault(editor_, e.text, now);
  return to_all(notice_message(e.code, e.text));
}

Outs Session::tick(double now) {
  Outs outs;
  for (const auto& [id, client] : clients_)
    if (!client.known && now - client.since > kHelloSeconds) outs.push_back(close(id, "no hello"));
  if (editing() && now - last_ledger_ >= kLedgerSeconds) {
    last_ledger_ = now;
    Json summary = ledger_.summary(now);
    summary["viewers"] = viewers();
    for (Out& out : to_all(summary.dump())) outs.push_back(std::move(out));
  }
  return outs;
}

Outs Session::fault(ClientId id, const std::string& what, double now) {
  Outs outs = {say(id, refused_message("message", "protocol", what))};
  if (!clients_.at(id).faults.take(now)) outs.push_back(close(id, "too many faults"));
  return outs;
}

Outs Session::to_all(const std::string& message) const {
  const auto one = shared(message);
  Outs outs;
  for (const auto& [id, client] : clients_)
    if (client.known) outs.push_back({id, Out::Kind::text, one});
  return outs;
}

std::string Session::welcome(Role role) const {
  return Json{{"type", "welcome"},
              {"version", kProtocolVersion},
              {"role", role == Role::editor ? "edit" : "watch"},
              {"model", info_.model},
              {"size", {info_.size.width, info_.size.height}},
              {"chunk_frames", info_.chunk_frames},
              {"max_strength", info_.max_strength},
              {"max_steps", kMaxSteps},
              {"max_frame_bytes", kMaxFrameBytes},
              {"max_instruction_bytes", kMaxInstructionBytes},
              {"examples", info_.examples}}
      .dump();
}

std::string Session::state() const {
  Json regions = Json::array();
  for (const Region& r : regions_) regions.push_back({r.x, r.y, r.width, r.height});
  return Json{{"type", "state"},
              {"editing", editing()},
              {"instruction", instruction_},
              {"strength", settings_.strength.value_or(1)},
              {"seed", settings_.seed.value_or(0)},
              {"steps", settings_.steps.value_or(4)},
              {"regions", regions}}
      .dump(-1, ' ', false, Json::error_handler_t::replace);
}

size_t Session::viewers() const {
  size_t n = 0;
  for (const auto& [id, client] : clients_) n += client.known && client.role == Role::viewer;
  return n;
}

}  // namespace rivulet::serve
