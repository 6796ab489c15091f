"""What every room needs: errors, files, tables, options, progress, processes, weights."""
