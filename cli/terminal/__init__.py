"""What people see: answers as they come, tables, progress and logs, whatever the output can take."""
