// rivulet audit: is an audit log whole?
#include <iostream>

#include "apps/commands.h"
#include "apps/safeguards/audit.h"

namespace rivulet {

int run_audit(const AuditOptions& options) {
  const AuditCheck found = verify_audit(options.file);
  if (!found.error.empty()) {
    std::cout << "broken: " << found.error << " (" << found.entries << " whole entries before it)\n";
    return 1;
  }
  std::cout << "whole: " << found.entries << " entries, last hash " << found.last_hash << "\n";
  return 0;
}

}  // namespace rivulet
