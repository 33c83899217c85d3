#include "comm/agreement.h"

#include <new>

namespace lockstep {

void run_together(Communicator& communicator, const std::function<void()>& f) {
  std::string failure;  // the message behind one character for the exit code
  try {
    f();
  } catch (const Error& error) {
    failure = static_cast<char>(error.exit_code()) + std::string(error.what());
  } catch (const std::bad_alloc&) {
    throw;  // the program's main says what to do
  } catch (const std::exception& error) {
    failure = static_cast<char>(ExitCode::device) + std::string(error.what());
  }
  communicator.set_purpose("on whether all workers succeeded");
  double first = failure.empty() ? communicator.size() : communicator.rank();
  communicator.all_reduce(&first, 1, ReduceOp::min);
  const int root = static_cast<int>(first);
  if (root == communicator.size()) return;
  communicator.broadcast(failure, root);
  throw SharedError(static_cast<ExitCode>(failure.front()), failure.substr(1));
}

std::vector<std::string> said_by_all(Communicator& communicator, const std::string& mine) {
  communicator.set_purpose("of what each worker has");
  std::string joined;
  for (const std::string& text : communicator.gather(mine)) joined += text + '\0';
  communicator.broadcast(joined, 0);
  std::vector<std::string> all;
  for (size_t begin = 0, end; begin < joined.size(); begin = end + 1) {
    end = joined.find('\0', begin);
    all.push_back(joined.substr(begin, end - begin));
  }
  return all;
}

}  // namespace lockstep
