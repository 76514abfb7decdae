"""A call is data: what public functions return remembers its call, and one compiled program serves each structure."""
