"""The ground floor: errors, records, configuration, files, progress and tracking."""
