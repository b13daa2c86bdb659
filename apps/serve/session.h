// Who is connected, who edits, and what every message does: the whole behaviour of the server without its
// sockets, threads and clocks. Each call returns what is to be sent.
//
//   connected -> hello -> editor or viewer -> gone
//
// One editor at a time; a second one is told so. Viewers only listen. A connection that says nothing is
// closed after kHelloSeconds, one that breaks the protocol again and again is closed too.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "apps/frames.h"
#include "apps/serve/events.h"
#include "apps/serve/frame_queue.h"
#include "apps/serve/limits.h"

namespace rivulet::serve {

using ClientId = int64_t;

struct Out {
  enum class Kind { text, picture, close };
  ClientId to = 0;
  Kind kind = Kind::text;
  // A picture may be left out when the client does not keep up; close carries the reason.
  std::shared_ptr<const std::string> message;
};
using Outs = std::vector<Out>;

// The editing that a session asks for (studio.h); a test has its own.
class EditControl {
 public:
  virtual ~EditControl() = default;
  // Events of this editing carry its number.
  virtual void begin(int64_t number) = 0;
  virtual void frame(SourceFrame frame) = 0;
  virtual void instruct(const Instruct& instruction) = 0;
  virtual void apply(const Settings& settings) = 0;
  virtual void protect(std::vector<Region> regions) = 0;
  virtual void reset() = 0;
  virtual void end() = 0;
};

struct SessionInfo {
  std::string model;
  FrameSize size;
  int64_t chunk_frames = 0;
  double max_strength = 1;
  std::vector<std::string> examples;  // instructions that the model follows
  std::string token;                  // empty: none is asked for
};

class Session {
 public:
  // Both outlive the session.
  Session(SessionInfo info, EditControl& control, Ledger& ledger);

  // Times are seconds that never go back.
  void connected(ClientId id, double now);
  Outs text(ClientId id, std::string_view message, double now);
  Outs picture(ClientId id, std::shared_ptr<const std::string> message, double now);
  Outs gone(ClientId id);
  Outs event(int64_t number, Event event, double now);
  // A picture was left out because a client does not keep up.
  void unsent() { ledger_.unsent(); }
  // To be called a few times a second.
  Outs tick(double now);

  bool editing() const { return editor_ != 0; }
  size_t clients() const { return clients_.size(); }

 private:
  struct Client {
    bool known = false;  // has said hello
    Role role = Role::viewer;
    double since = 0;
    RateLimit frames{60, 60}, bytes{12e6, 24e6}, controls{20, 60}, faults{0.5, 10};
  };
  Outs hello(ClientId id, const Hello& hello);
  Outs dispatch(ClientId id, const ClientMessage& message, double now);
  Outs fault(ClientId id, const std::string& what, double now);
  Outs to_all(const std::string& message) const;
  std::string welcome(Role role) const;
  std::string state() const;
  size_t viewers() const;

  const SessionInfo info_;
  EditControl& control_;
  Ledger& ledger_;
  std::map<ClientId, Client> clients_;
  ClientId editor_ = 0;
  int64_t number_ = 0;  // of the editing
  uint32_t last_sequence_ = 0;
  double last_ledger_ = 0;
  // In force, as everyone is told.
  std::string instruction_;
  Settings settings_;
  std::vector<Region> regions_;
};

}  // namespace rivulet::serve
