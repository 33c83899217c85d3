#pragma once
#include <string>
#include <vector>

// The network interfaces of this host, as MPI over TCP sees them.
namespace lockstep::launch {

struct Interface {
  std::string name;     // "eth0"
  std::string address;  // "10.0.0.5", IPv4
  std::string subnet;   // "10.0.0.0/24"
};

// Those that are up and have an IPv4 address, without the loopback.
std::vector<Interface> network_interfaces();

}  // namespace lockstep::launch
